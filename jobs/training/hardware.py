"""Accelerators by name: what a dry run needs to say whether and how fast a recipe runs on them."""

import os
import re
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
    "a6000": Gpu(155, 47.5),
    "l40s": Gpu(362, 44.4),
    "a100-40g": Gpu(312, 39.4),
    "a100-80g": Gpu(312, 79.3),
    "h100": Gpu(989, 79.2),
    "h100-pcie": Gpu(756, 79.2),
    "h100-nvl": Gpu(835, 93.0),
    "h200": Gpu(989, 139.8),
    "h200-nvl": Gpu(835, 139.8),
    "b200": Gpu(2250, 178.0),
}
"""By name: the model of the largest form (SXM), or a form of its own with less power and so less
speed."""


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
    name = named(torch.cuda.get_device_name())
    total = torch.cuda.get_device_properties(0).total_memory
    return Gpu(GPUS[name].tflops, total / GIB) if name else None


def named(said: str) -> str:
    """The name in ``GPUS`` of what the driver says, such as ``NVIDIA H100 PCIe``; "" for others.

    Of the names whose model the driver says, the one with the most of its words wins: an H100 with
    PCIe is none of 989 TFLOP/s.
    """
    words = re.split(r"[^a-z0-9]+", said.lower())
    fits = [name for name in GPUS if name.partition("-")[0] in words]
    return max(fits, key=lambda name: sum(w in words for w in name.split("-")), default="")


def room(ranks: int) -> tuple[float, bool]:
    """Bytes that one rank may take, and whether that is main memory.

    Args:
        ranks: number of ranks of the run; those of this machine share its main memory.
    """
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory), False
    here = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or ranks)
    return psutil.virtual_memory().available / here, True
