"""Which number formats a run computes in: where ``auto`` in a recipe becomes a format."""

import platform
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from cluster.ranks import dist
from modeling.precision import chosen, multiplies_bf16


def resolve(recipe: Any, fast_bf16: bool) -> Any:
    """A training recipe whose ``auto`` formats are settled; those given by name stay.

    Args:
        fast_bf16: whether every device of the run multiplies bf16 in hardware.
    """
    return _each_format(recipe, recipe, lambda now, _: chosen(now, fast_bf16))


def keep(recipe: Any, before: Any) -> Any:
    """A recipe whose ``auto`` formats are those of the checkpoint that it goes on from.

    Args:
        before: the checkpoint's recipe, of the same kind.
    """
    return _each_format(recipe, before, lambda now, then: then if now == "auto" else now)


def _each_format(recipe: Any, other: Any, choose: Callable[[str, str], str]) -> Any:
    """The recipe with each format chosen from its own and another recipe's."""
    run, then = recipe.run, other.run
    zero = replace(run.zero, precision=choose(run.zero.precision, then.zero.precision))
    encoder = replace(recipe.encoder, dtype=choose(recipe.encoder.dtype, other.encoder.dtype))
    recipe = replace(recipe, run=replace(run, zero=zero), encoder=encoder)
    if recipe.kind == "stage1":
        return recipe
    dtype = choose(recipe.language.dtype, other.language.dtype)
    return replace(recipe, language=replace(recipe.language, dtype=dtype))


def formats(recipe: Any) -> dict[str, str]:
    """The formats of a recipe by what computes in them."""
    found = {"training": recipe.run.zero.precision}
    if not recipe.encoder.train:
        found["encoder"] = recipe.encoder.dtype
    if recipe.kind != "stage1":
        found["language model"] = recipe.language.dtype
    return found


def described(recipe: Any) -> str:
    """The formats in words: one where all are the same, else each part's."""
    found = formats(recipe)
    if len(set(found.values())) == 1:
        return recipe.run.zero.precision
    return ", ".join(f"{part} {dtype}" for part, dtype in found.items())


def agreed(device: torch.device) -> bool:
    """Whether the devices of all ranks multiply bf16 in hardware; every rank gets one answer."""
    return bool(dist.all_reduce([float(multiplies_bf16(device))], "min")[0])


def slow_word(recipe: Any, device: torch.device, resumed: bool) -> str:
    """A warning where a run computes in bf16 on a device that multiplies it in software."""
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
    """The device in words: a GPU's name, or the kind of CPU and its widest instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
