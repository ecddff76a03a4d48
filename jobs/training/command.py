"""What all training jobs share around the loop: the command line, the checks, the way they end."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Generic, TypeVar

import tyro
from torch import nn

from cluster.ranks import zero
from cluster.ranks.dist import place
from jobs import recipes
from jobs.models import encoder_settings, precision, resolve
from jobs.models.encoder_settings import is_here
from jobs.training import budget, hardware
from jobs.training import run as train_loop
from modeling.precision import multiplies_bf16

RecipeT = TypeVar("RecipeT")
INIT = {
    "stage1": "",
    "stage2": "",
    "finetune_caption": "a stage-2 run",
    "finetune_retrieval": "a stage-1 run",
    "finetune_vqa": "a stage-2 run",
}
"""What each job must start from; nothing where it need not."""


@dataclass(frozen=True)
class Arguments(Generic[RecipeT]):
    """Launch arguments of a training job.

    Attributes:
        config: the recipe itself: each of its fields is an option (``--optim.lr 1e-3``).
        data: CapFilt outputs or folders of tars, separated by commas.
        out: folder of the run; one that holds a checkpoint is resumed.
        init: the run or checkpoint to start from: of stage 1 for stage 2 and retrieval, of stage 2
            for captioning and VQA.
        validate: samples to measure the losses on during training, in the form of ``--data``.
        epochs: passes over the samples of the data, in place of ``--steps``.
        zero_stage: short for ``--zero.stage``.
        dry_run: print the resolved recipe, parameters, memory, FLOPs and batch arithmetic, and
            stop; needs no data, no weights and no GPU.
        world: ranks that a dry run plans for; 0 takes the launcher's.
        gpu: accelerator that a dry run tells the time for (``jobs.training.hardware.GPUS``).
        price: of one of them for an hour, in whatever currency.
    """

    config: Annotated[RecipeT, tyro.conf.arg(name="")]
    recipe: str
    data: str = ""
    out: str = ""
    init: str = ""
    validate: str = ""
    epochs: float = 0.0
    zero_stage: int | None = None
    dry_run: bool = False
    world: int = 0
    gpu: str = ""
    price: float = 0.0


def main(
    kind: str,
    arguments: Sequence[str] | None,
    make_module: Callable[[Any, str, bool], nn.Module],
    make_task: Callable[..., train_loop.Task],
    open_data: train_loop.OpenData = train_loop.open_sources,
) -> int:
    """Check everything, then train.

    Args:
        kind: the job's name, and that of its recipes.
        arguments: the command line; None for this process's own.
        make_module: (recipe, ``--init``, whether no checkpoint is resumed) -> all that trains.
        make_task: (recipe, module, device) -> what the loop needs.
        open_data: ``--data`` -> its sources.

    Returns:
        The exit code: 2, as for a mistake, where too many steps had to be skipped: a scheduler
        that started it again would only meet them again.

    Raises:
        ValueError: a mistake in the command, the recipe, the data or a model's files.
    """
    try:
        given = parse(kind, sys.argv[1:] if arguments is None else arguments)
        recipe = resolve.with_model_sizes(given.config)
        if given.dry_run:
            recipe = encoder_settings.settled(recipe, fetch=False)
            gpu = hardware.gpu(given.gpu) if given.gpu else hardware.this_gpu()
            settled = precision.resolve(recipe, gpu is not None or multiplies_bf16(place().device))
            print(budget.report(settled, given.world or place().world, gpu, given.price))
            return 0
        plan = train_loop.prepare(
            recipe, given.data, given.out, given.epochs, open_data, init=given.init
        )
        if given.validate:
            plan = replace(plan, validation=open_data(given.validate, recipe.run.loader))
        settled = precision.resolve(plan.recipe, multiplies_bf16(place().device))
        world, needed = place().world, (settled, budget.sketch(settled))
        budget.check_room(*needed, world, *hardware.room(world))
        if not place().rank:
            print(encoder_settings.describe(plan.recipe.encoder), flush=True)
            print(*budget.table(*needed, world, hardware.this_gpu()), sep="\n", flush=True)
        plan = replace(plan, step_flops=budget.step_flops(*needed, world))
        fresh = plan.found is None
        if INIT[kind] and fresh and not given.init:
            raise ValueError(f"--init: none given; {kind} starts from {INIT[kind]}")
        module = make_module(plan.recipe, given.init if fresh else "", fresh)
    except (ValueError, FileNotFoundError):
        if place().rank:  # every rank meets the same mistake: one line is enough
            return 2
        raise
    try:
        code = train_loop.train(plan, lambda recipe, device: make_task(recipe, module, device))
    except FloatingPointError as broken:
        if not place().rank:  # all ranks stop with the same words
            print(f"error: {broken}", file=sys.stderr, flush=True)
        return 2
    return code if world == 1 else zero.leave(code)


def parse(kind: str, arguments: Sequence[str]) -> Arguments[Any]:
    """Parse a training job's arguments: the recipe named, with the overrides given.

    Raises:
        ValueError: no recipe named or an unknown one, no ``--data`` or ``--out``, ``--init`` in
            stage 1, or a value that the recipe's parts refuse.
    """
    given = _recipe_name(arguments)
    if given is None and not {"-h", "--help"} & set(arguments):
        raise ValueError(f"--recipe: none given; choose one of {', '.join(recipes.names(kind))}")
    base = recipes.recipe(kind, given or recipes.names(kind)[0])
    default: Arguments[Any] = Arguments(base, base.name)
    shape: Any = Arguments[type(base)]  # type: ignore[misc]
    parsed = tyro.cli(
        shape,
        default=default,
        args=[a for a in arguments if not a.startswith("--local_rank=")],  # the launcher's
        prog=f"jobs/{kind}.py",
        console_outputs=os.environ.get("RANK", "0") == "0",
    )
    if parsed.init and kind == "stage1":
        raise ValueError(f"--init {parsed.init}: {kind} starts from nothing; leave it out")
    for name in ("data", "out"):
        if not getattr(parsed, name) and not parsed.dry_run:
            raise ValueError(f"--{name}: none given; add --{name} and a path")
    for name, least in (("epochs", 0), ("world", 0), ("price", 0)):
        if getattr(parsed, name) < least:
            raise ValueError(f"--{name} {getattr(parsed, name)}: give a positive number")
    config = _one_size(_own_size(parsed.config, base, arguments), base)
    return replace(parsed, config=_settle(config, parsed.zero_stage))


def _own_size(recipe: Any, base: Any, arguments: Sequence[str]) -> Any:
    """Another encoder than the recipe's is shown its own image size, where none is given."""
    sizes = ("--encoder.image-size", "--encoder.image_size")
    given = any(argument.startswith(sizes) for argument in arguments)
    if given or recipe.encoder.name == base.encoder.name or not is_here(recipe.encoder.name):
        return recipe
    return replace(recipe, encoder=replace(recipe.encoder, image_size=0))


def _one_size(recipe: Any, base: Any) -> Any:
    """Let the training images follow ``--encoder.image-size``: there is one size, not two."""
    run, own = recipe.run, base.run.transform.size
    size = recipe.encoder.image_size
    if run.transform.size not in (size, own):
        raise ValueError(
            f"--transform.size {run.transform.size}: the encoder is shown {size} px; "
            "give --encoder.image-size alone"
        )
    return replace(recipe, run=replace(run, transform=replace(run.transform, size=size)))


def _settle(recipe: Any, zero_stage: int | None) -> Any:
    """Let the learning-rate schedule follow the number of steps, and check what is given."""
    run = recipe.run
    for name in ("steps", "global_batch", "save_every", "log_every", "keep"):
        if getattr(run, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(run, name)}: give at least 1")
    if zero_stage is not None:
        if zero_stage not in range(4):
            raise ValueError(f"--zero-stage {zero_stage}: give 0, 1, 2 or 3")
        run = replace(run, zero=replace(run.zero, stage=zero_stage))
    return train_loop.with_steps(replace(recipe, run=run), run.steps)


def _recipe_name(arguments: Sequence[str]) -> str | None:
    """The last ``--recipe`` given, as the parser itself will take it."""
    name = None
    for at, argument in enumerate(arguments):
        if argument == "--recipe" and at + 1 < len(arguments):
            name = arguments[at + 1]
        elif argument.startswith("--recipe="):
            name = argument.removeprefix("--recipe=")
    return name
