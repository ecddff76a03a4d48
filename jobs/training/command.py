"""The command line of the training jobs: a recipe by name, and its fields as options."""

import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Generic, TypeVar, cast

import tyro
from tyro.conf import Suppress

from cluster.ranks.gpus import check_gpus
from jobs import recipes
from jobs.models.encoder_settings import is_here
from jobs.recipes.schema import TrainRecipe
from jobs.training.resolve import with_steps

RecipeT = TypeVar("RecipeT", bound=TrainRecipe)
AnyRecipe = TypeVar("AnyRecipe", bound=TrainRecipe)


@dataclass(frozen=True)
class Given(Generic[RecipeT]):
    """All options of this job, with the values of the recipe that --recipe names.

    Attributes:
        config: the recipe; each of its fields is an option (``--optim.lr 1e-3``).
        data: CapFilt outputs or folders of tars, separated by commas; folders or s3:// URLs.
        out: folder or s3:// URL of the run; a run that holds a checkpoint is resumed.
        init: run or checkpoint to start from: of stage 1 for stage 2 and the retrieval finetune, of
            stage 2 for the captioning and VQA finetunes. Ours, LAVIS's (.pth) or Hugging Face's.
        validate: data to measure the losses on during training, in the form of --data.
        epochs: passes over the samples of the data; replaces --steps.
        zero_stage: short form of --zero.stage: 0, 1, 2 or 3.
        dry_run: print the resolved recipe, parameters, memory, FLOPs and batch arithmetic, and
            stop. Needs no data, no weights and no GPU.
        world: number of ranks that a dry run plans for; 0: the launcher's.
        gpu: name of the accelerator that a dry run plans for, such as h100.
        price: price of one accelerator for an hour, in any currency.
        job: name of the job.
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
    job: Suppress[str] = ""


@dataclass(frozen=True)
class Common:
    """The options that are set most often.

    Attributes:
        recipe: name of the recipe, which has a value for every other option.
        data: CapFilt outputs or folders of tars, separated by commas; folders or s3:// URLs.
        out: folder or s3:// URL of the run; a run that holds a checkpoint is resumed.
        init: run or checkpoint to start from; ours, LAVIS's (.pth) or Hugging Face's.
        steps: optimizer steps.
        epochs: passes over the samples of the data; replaces --steps.
        global_batch: samples of a step, over all ranks.
        micro_batch: samples that a rank takes at once; 0: its whole share.
        validate: data to measure the losses on during training.
        dry_run: print recipe, parameters, memory, FLOPs and time, and stop.
    """

    recipe: str
    data: str = ""
    out: str = ""
    init: str = ""
    steps: int = 0
    epochs: float = 0.0
    global_batch: int = 0
    micro_batch: int = 0
    validate: str = ""
    dry_run: bool = False


def parse(
    job: str, arguments: Sequence[str] | None, about: str | None = None, kind: str = ""
) -> Given[Any]:
    """Parse a training job's command line: the recipe named, with the overrides given.

    Args:
        job: name of the job.
        arguments: the command line; None: this process's own.
        about: description for ``--help``.
        kind: kind of its recipes; empty: the job's name.

    Raises:
        ValueError: no recipe named or an unknown one, no ``--data`` or ``--out``, ``--init`` in
            stage 1, or a value that the recipe's parts refuse.
    """
    line = list(sys.argv[1:] if arguments is None else arguments)
    named, kind = _recipe_name(line), kind or job
    wants_help = bool({"-h", "--help"} & set(line))
    if named is None and not wants_help:
        raise ValueError(f"--recipe: none given; choose one of {', '.join(recipes.names(kind))}")
    base = recipes.recipe(kind, named or recipes.names(kind)[0])
    speaks = os.environ.get("RANK", "0") == "0"
    if wants_help and speaks:
        _show_common(job, kind, base, about)
    default: Given[Any] = Given(base, base.name, job=job)
    shape: Any = Given[type(base)]  # type: ignore[misc]
    given = tyro.cli(
        shape,
        default=default,
        args=[argument for argument in line if not argument.startswith("--local_rank=")],
        prog=f"jobs/{job}.py",
        description=f"Every option, with the values of the recipe {base.name}.",
        console_outputs=speaks,
    )
    _check(given)
    config = _one_size(_own_size(given.config, base, line), base)
    return replace(given, config=_settle_run(config, given.zero_stage))


def _show_common(job: str, kind: str, base: TrainRecipe, about: str | None) -> None:
    """Print the options that are set most often, in front of the list of all."""
    run = base.run
    common = Common(
        base.name, steps=run.steps, global_batch=run.global_batch, micro_batch=run.micro_batch
    )
    names = f"Recipes: {', '.join(recipes.names(kind))}."
    with contextlib.suppress(SystemExit):
        tyro.cli(
            Common,
            default=common,
            args=["--help"],
            prog=f"jobs/{job}.py",
            description=f"{about}\n\n{names}" if about else names,
        )


def _check(given: Given[Any]) -> None:
    if given.init and given.job == "stage1":
        raise ValueError(f"--init {given.init}: {given.job} starts from nothing; leave it out")
    if not given.dry_run:
        check_gpus()
        _check_compiler(given.config)
    for name in ("data", "out"):
        if not getattr(given, name) and not given.dry_run:
            raise ValueError(f"--{name}: none given; add --{name} and a path")
    for name in ("epochs", "world", "price"):
        if getattr(given, name) < 0:
            raise ValueError(f"--{name} {getattr(given, name)}: give a positive number")


def _check_compiler(recipe: TrainRecipe) -> None:
    """Refuse ``--encoder.compile`` where the C compiler that it needs is missing."""
    compilers = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    if recipe.encoder.compile and not any(name and shutil.which(name) for name in compilers):
        raise ValueError(
            "--encoder.compile: no C compiler on this machine, which torch.compile needs; install "
            "gcc (and Python's headers), set CC, or leave the option out"
        )


def _own_size(recipe: AnyRecipe, base: TrainRecipe, line: Sequence[str]) -> AnyRecipe:
    """The recipe at the own image size of an encoder that is not the recipe's, if none is given."""
    sizes = ("--encoder.image-size", "--encoder.image_size")
    given = any(argument.startswith(sizes) for argument in line)
    if given or recipe.encoder.name == base.encoder.name or not is_here(recipe.encoder.name):
        return recipe
    return replace(recipe, encoder=replace(recipe.encoder, image_size=0))


def _one_size(recipe: AnyRecipe, base: TrainRecipe) -> AnyRecipe:
    """The recipe with training images of the encoder's size: there is one size, not two."""
    run, own = recipe.run, base.run.transform.size
    size = recipe.encoder.image_size
    if run.transform.size not in (size, own):
        raise ValueError(
            f"--transform.size {run.transform.size}: the encoder is shown {size} px; "
            "give --encoder.image-size alone"
        )
    return replace(recipe, run=replace(run, transform=replace(run.transform, size=size)))


def _settle_run(recipe: AnyRecipe, zero_stage: int | None) -> AnyRecipe:
    """The recipe with checked counts, the given ZeRO stage, and a schedule as long as the run."""
    run = recipe.run
    for name in ("steps", "global_batch", "save_every", "log_every", "keep"):
        if getattr(run, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(run, name)}: give at least 1")
    if zero_stage is not None:
        if zero_stage not in range(4):
            raise ValueError(f"--zero-stage {zero_stage}: give 0, 1, 2 or 3")
        run = replace(run, zero=replace(run.zero, stage=cast(Any, zero_stage)))
    return with_steps(replace(recipe, run=run), run.steps)


def _recipe_name(line: Sequence[str]) -> str | None:
    """The last ``--recipe`` given, as the parser itself will take it."""
    name = None
    for at, argument in enumerate(line):
        if argument == "--recipe" and at + 1 < len(line):
            name = line[at + 1]
        elif argument.startswith("--recipe="):
            name = argument.removeprefix("--recipe=")
    return name
