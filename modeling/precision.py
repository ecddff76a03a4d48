"""Number formats by name, and whether a device multiplies bf16 in hardware.

bf16 is the faster format on a GPU since Ampere and on a CPU with AVX512-BF16 or AMX. Any other
CPU multiplies it in software, ten to forty times slower than fp32.
"""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Dtype = Literal["auto", "bf16", "fp16", "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def chosen(dtype: str, fast_bf16: bool) -> str:
    """The number format that is meant: ``auto`` becomes bf16 or fp32, other names are kept.

    Args:
        dtype: name of a number format, or ``auto``.
        fast_bf16: whether the device multiplies bf16 in hardware (`multiplies_bf16`).
    """
    if dtype != "auto":
        return dtype
    return "bf16" if fast_bf16 else "fp32"


def multiplies_bf16(device: torch.device | str) -> bool:
    """Whether a device multiplies bf16 matrices in hardware, and so at least as fast as fp32.

    For a GPU its generation decides. For a CPU oneDNN is asked, and then one small product must be
    faster than in fp32, since oneDNN also says yes where AVX-512 only emulates bf16.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and _cpu_multiplies_bf16()


@functools.cache
def _cpu_multiplies_bf16() -> bool:
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if supported is None or not torch.backends.mkldnn.is_available() or not supported():
        return False
    return seconds_of_product(torch.bfloat16) < seconds_of_product(torch.float32)


def seconds_of_product(dtype: torch.dtype, size: int = 256, repeats: int = 8) -> float:
    """Shortest time of a product of two square matrices on one thread of this CPU.

    The unit is a second of the thread's own time, which other work on the machine hardly changes.
    """
    left, right = torch.ones(2, size, size, dtype=dtype)
    shortest = float("inf")
    with threads_set(1):
        for _ in range(repeats):
            begun = time.thread_time()
            left @ right
            shortest = min(shortest, time.thread_time() - begun)
    return shortest


@contextmanager
def threads_set(number: int) -> Iterator[None]:
    """Inside, torch computes on this number of CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
