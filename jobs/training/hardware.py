"""Accelerators by name: what a dry run needs to say whether and how fast a recipe runs on them."""

import os
from dataclasses import dataclass

import psutil
import torch

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One accelerator.

    Attributes:
        tflops: dense bf16 matrix products at peak, 1e12 FLOP/s, from its maker's data sheet.
        memory: GiB that a process can use.
    """

    tflops: float
    memory: float


GPUS = {
    "v100": Gpu(125, 31.7),  # fp16
    "a6000": Gpu(155, 47.5),
    "l40s": Gpu(362, 44.4),
    "a100-40g": Gpu(312, 39.4),
    "a100-80g": Gpu(312, 79.3),
    "h100": Gpu(989, 79.2),
    "h200": Gpu(989, 139.8),
    "b200": Gpu(2250, 178.0),
}


def gpu(name: str) -> Gpu:
    """The accelerator of a name.

    Raises:
        ValueError: an unknown one.
    """
    if name not in GPUS:
        raise ValueError(f"--gpu {name}: not known; choose one of {', '.join(GPUS)}")
    return GPUS[name]


def this_gpu() -> Gpu | None:
    """The accelerator of this machine; None where there is none, or it is not known."""
    if not torch.cuda.is_available():
        return None
    said = torch.cuda.get_device_name().lower().replace(" ", "-")
    found = [gpu for name, gpu in GPUS.items() if name.partition("-")[0] in said]
    total = torch.cuda.get_device_properties(0).total_memory
    return Gpu(found[0].tflops, total / GIB) if found else None


def room(ranks: int) -> tuple[float, bool]:
    """Bytes that one rank may take, and whether that is main memory.

    Args:
        ranks: number of ranks of the run; those of this machine share its main memory.
    """
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory), False
    here = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or ranks)
    return psutil.virtual_memory().available / here, True
