"""A recipe with everything settled that it leaves to the models, the data and the machine.

Number formats are settled later, by ``jobs.models.precision``, when all ranks have met.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from jobs.models import encoder_settings, languages
from jobs.models.sizes import with_model_sizes
from jobs.recipes.schema import RunConfig, TrainRecipe

RecipeT = TypeVar("RecipeT", bound=TrainRecipe)


def resolve(
    recipe: RecipeT,
    world: int,
    *,
    samples: int = 0,
    epochs: float = 0.0,
    before: Mapping[str, Any] | None = None,
    resumed: bool = False,
    fetch: bool = True,
) -> RecipeT:
    """Settle a recipe: sizes of its models, steps, pixels, text rules, micro-batch.

    Args:
        world: number of ranks.
        samples: samples of the data, once they are known; 0 before.
        epochs: passes over the samples; 0 leaves the recipe's steps.
        before: the recipe of the checkpoint that the run resumes or starts from. A setting that
            this recipe leaves open keeps the value it had there.
        resumed: whether ``before`` belongs to this run: its text rules and micro-batch stay too.
        fetch: False leaves models alone that are yet to be fetched from a hub (a dry run).

    Raises:
        ValueError: a model is missing or of another family, or the ranks cannot share the batch.
    """
    recipe = with_model_sizes(recipe)
    if epochs and samples:
        recipe = with_steps(recipe, math.ceil(epochs * samples / recipe.run.global_batch))
    recipe = encoder_settings.settled(recipe, before, fetch)
    own = before if resumed else None
    if fetch:
        recipe = languages.settle_language(recipe, own)
        recipe = replace(recipe, run=_with_micro_batch(recipe.run, world, own))
    return recipe


def with_steps(recipe: RecipeT, steps: int) -> RecipeT:
    """The recipe with this many steps; its learning-rate schedule follows them."""
    run = recipe.run
    warmup = min(run.optim.warmup_steps, steps // 2)
    optim = replace(run.optim, total_steps=steps, warmup_steps=warmup)
    return replace(recipe, run=replace(run, steps=steps, optim=optim))


def batch_arithmetic(run: RunConfig, world: int) -> tuple[int, int]:
    """(micro-batch, accumulation) of each rank, so that world x micro x accumulation = global.

    Raises:
        ValueError: the global batch is not such a product.
    """
    share, rest = divmod(run.global_batch, world)
    micro = run.micro_batch or share
    if rest or micro < 1 or share % micro:
        raise ValueError(
            f"--global-batch {run.global_batch} is not {world} ranks x micro-batches of "
            f"{micro or 'at least 1'}; give a multiple of {world * max(1, micro)}"
        )
    return micro, share // micro


def _with_micro_batch(run: RunConfig, world: int, before: Mapping[str, Any] | None) -> RunConfig:
    """The run with its micro-batch settled.

    A resumed run keeps the one it had, where nobody asks for another and this number of ranks can
    make it: on fewer ranks it still fits in memory, and gradients are rounded to bf16 as before.
    """
    had = before["run"].get("micro_batch", 0) if before else 0
    if not run.micro_batch and had and run.global_batch % (world * had) == 0:
        return replace(run, micro_batch=had)
    micro, _ = batch_arithmetic(run, world)
    return replace(run, micro_batch=micro)
