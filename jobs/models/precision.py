"""Number formats that a run computes in: ``auto`` in a recipe becomes bf16 or fp32 here."""

import platform
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from cluster.ranks import dist
from jobs.recipes.schema import LlavaRecipe, SpeakingRecipe, TrainRecipe
from modeling.precision import chosen, multiplies_bf16

RecipeT = TypeVar("RecipeT", bound=TrainRecipe)


def resolve(recipe: RecipeT, fast_bf16: bool) -> RecipeT:
    """The recipe with a format in place of each ``auto``; formats given by name stay.

    Args:
        fast_bf16: whether all devices of the run multiply bf16 in hardware.
    """
    return _each_format(recipe, recipe, lambda now, _: chosen(now, fast_bf16))


def keep(recipe: RecipeT, before: RecipeT) -> RecipeT:
    """The recipe with the format of an earlier one in place of each ``auto``.

    Args:
        before: recipe of the checkpoint that the run resumes from.
    """
    return _each_format(recipe, before, lambda now, then: then if now == "auto" else now)


def _each_format(recipe: RecipeT, other: RecipeT, choose: Callable[[str, str], Any]) -> RecipeT:
    """The recipe with each format chosen from its own and another recipe's."""
    run, then = recipe.run, other.run
    zero = replace(run.zero, precision=choose(run.zero.precision, then.zero.precision))
    encoder = replace(recipe.encoder, dtype=choose(recipe.encoder.dtype, other.encoder.dtype))
    recipe = replace(recipe, run=replace(run, zero=zero), encoder=encoder)
    if isinstance(recipe, SpeakingRecipe) and isinstance(other, SpeakingRecipe):
        dtype = choose(recipe.language.dtype, other.language.dtype)
        return replace(recipe, language=replace(recipe.language, dtype=dtype))
    return recipe


def formats(recipe: TrainRecipe) -> dict[str, str]:
    """The formats of a recipe, by the part that computes in them."""
    found: dict[str, str] = {"training": recipe.run.zero.precision}
    if not recipe.encoder.train:
        found["encoder"] = recipe.encoder.dtype
    trains = isinstance(recipe, LlavaRecipe) and recipe.stage == 2
    if isinstance(recipe, SpeakingRecipe) and not trains:
        found["language model"] = recipe.language.dtype
    return found


def described(recipe: TrainRecipe) -> str:
    """The formats in words: one name where all parts have the same, else each part's."""
    found = formats(recipe)
    if len(set(found.values())) == 1:
        return recipe.run.zero.precision
    return ", ".join(f"{part} {dtype}" for part, dtype in found.items())


def agreed(device: torch.device) -> bool:
    """Whether the devices of all ranks multiply bf16 in hardware; all ranks get the same answer."""
    return bool(dist.all_reduce([float(multiplies_bf16(device))], "min")[0])


def slow_word(recipe: TrainRecipe, device: torch.device, resumed: bool) -> str:
    """A warning where a run computes in bf16 but its device emulates it in software; else ""."""
    if "bf16" not in formats(recipe).values() or multiplies_bf16(device):
        return ""
    begun = (
        "the run began in bf16 and goes on in it, so that its losses stay what they were; a new "
        "run with --zero.precision auto takes fp32"
        if resumed
        else "--zero.precision auto, --encoder.dtype auto and --language.dtype auto take fp32"
    )
    return f"warning: this device multiplies bf16 in software, many times slower than fp32: {begun}"


def processor(device: torch.device) -> str:
    """The device in words: a GPU's name, or a CPU's architecture and its widest instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
