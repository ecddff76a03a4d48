"""The command line that all training jobs share: a recipe by name, paths, and dotted overrides."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Generic, TypeVar

import tyro

from jobs import recipes

RecipeT = TypeVar("RecipeT")


@dataclass(frozen=True)
class Arguments(Generic[RecipeT]):
    """Launch arguments of a training job.

    Attributes:
        config: the recipe itself: each of its fields is an option (``--optim.lr 1e-3``).
        data: CapFilt outputs or folders of tars, separated by commas.
        out: folder of the run; one that holds a checkpoint is resumed.
        init: stage 2 only: a stage-1 run or checkpoint to start from.
        zero_stage: short for ``--zero.stage``.
        dry_run: print the resolved recipe, sizes and batch arithmetic, and stop.
    """

    config: Annotated[RecipeT, tyro.conf.arg(name="")]
    recipe: str
    data: str = ""
    out: str = ""
    init: str = ""
    zero_stage: int | None = None
    dry_run: bool = False


def parse(kind: str, arguments: Sequence[str]) -> Arguments[Any]:
    """Parse a training job's arguments: the recipe named, with the overrides given.

    Raises:
        ValueError: no recipe named or an unknown one, no ``--data`` or ``--out``, ``--init`` in a
            stage that takes none, or a value that the recipe's parts refuse.
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
    if parsed.init and kind != "stage2":
        raise ValueError(f"--init {parsed.init}: {kind} starts from nothing; leave it out")
    for name in ("data", "out"):
        if not getattr(parsed, name) and not parsed.dry_run:
            raise ValueError(f"--{name}: none given; add --{name} and a path")
    return replace(parsed, config=_settle(parsed.config, parsed.zero_stage))


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
    warmup = min(run.optim.warmup_steps, run.steps // 2)
    optim = replace(run.optim, total_steps=run.steps, warmup_steps=warmup)
    return replace(recipe, run=replace(run, optim=optim))


def _recipe_name(arguments: Sequence[str]) -> str | None:
    """The last ``--recipe`` given, as the parser itself will take it."""
    name = None
    for place, argument in enumerate(arguments):
        if argument == "--recipe" and place + 1 < len(arguments):
            name = arguments[place + 1]
        elif argument.startswith("--recipe="):
            name = argument.removeprefix("--recipe=")
    return name
