"""The check that a resumed run has the data and, but for a few fields, the recipe of its start."""

from collections.abc import Mapping, Sequence
from typing import Any

from cluster import checkpoint
from jobs import recipes
from jobs.models import encoder_settings
from jobs.recipes.schema import TrainRecipe
from jobs.training.resolve import RecipeT
from pipeline.shards.reading import Shards, data_hash

# Fields that may differ between a run and its resumption; the rest decides what the run computes.
FREE = ("steps", "micro_batch", "save_every", "keep", "log_every", "bad_limit")
FREE_PARTS = (
    "tensorboard",
    "wandb",
    "validate_",
    "profile_at",
    "mfu",
    "language.shard",
    "guard.limit",
    "made_for",  # LLaVA's models, which the job compares itself
    "zero",
    "loader.workers",
    "loader.prefetch",
    "loader.cache",
    "loader.fetch",
    "optim.total_steps",
)


def recipe_of(found: checkpoint.Checkpoint, like: RecipeT) -> RecipeT:
    """The typed recipe of a checkpoint, with defaults for what an older version lacked.

    Args:
        like: recipe of the run that resumes; returned itself where the checkpoint is of another
            kind, which ``check_same`` refuses.
    """
    if found.recipe.get("kind") != like.kind:
        return like
    written = encoder_settings.with_older(found.recipe)
    return recipes.from_dict(type(like), written, f"checkpoint {found.folder}")


def check_same(
    found: checkpoint.Checkpoint, recipe: TrainRecipe, sources: Sequence[Shards], out: str
) -> None:
    """Refuse to continue a run with another recipe or other data.

    Raises:
        ValueError: names the field, both values and the remedy.
    """
    mine, theirs = recipes.as_json(recipe), found.recipe
    if theirs.get("kind") == mine["kind"]:
        theirs = recipes.as_json(recipe_of(found, recipe))
    for field in ("kind", "name"):
        if theirs.get(field) != mine[field]:
            raise ValueError(
                f"--out {out} holds a checkpoint of {field} {theirs.get(field)!r}, this is "
                f"{mine[field]!r}; give another --out, or the recipe it was started with"
            )
    for field, then, now in _differences(theirs, mine, ""):
        name = field.removeprefix("run.")
        free = name in FREE or name.startswith(FREE_PARTS)
        if not free and not _follows(name, theirs, mine):
            raise ValueError(
                f"--out {out} was started with {name} = {then!r}, this run has {now!r}; "
                "give the same value to resume, or another --out"
            )
    now_hash, then_hash = data_hash(sources), found.state.get("manifest")
    if now_hash != then_hash:
        raise ValueError(
            f"--data {','.join(source.name for source in sources)}: manifest {now_hash} is "
            f"not the checkpoint's {then_hash} ({found.where}); give the data it was trained on, "
            "or another --out"
        )


def _follows(name: str, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    """Whether a difference follows from another number of steps: a shortened warm-up does."""
    return name == "optim.warmup_steps" and theirs["run"]["steps"] != mine["run"]["steps"]


def _differences(then: Any, now: Any, where: str) -> list[tuple[str, Any, Any]]:
    if isinstance(then, dict) and isinstance(now, dict):
        keys = sorted(then.keys() | now.keys())
        parts = (_differences(then.get(k), now.get(k), f"{where}.{k}".strip(".")) for k in keys)
        return [difference for part in parts for difference in part]
    return [] if then == now else [(where, then, now)]
