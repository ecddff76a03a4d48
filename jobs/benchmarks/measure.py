"""Parts that all benchmarks share: timing in turns, the matrix-product ceiling, tables and JSON."""

import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from modeling.linear import product
from modeling.precision import seconds_of_product

TORCHS = "ours, torch's products"
"""Name of the row in which our code runs with torch's matrix products: the algorithm's own gain."""


def has_torchs(device: str, dtype: str) -> bool:
    """Whether torch's own products are another library's than ours (see ``modeling.linear``)."""
    return dtype == "fp32" and device.startswith("cpu")


@dataclass(frozen=True)
class Timed:
    """Seconds of several runs of the same work."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """Seconds of the least disturbed run, which are compared: noise only ever adds time."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """Median seconds, to judge how noisy the machine was."""
        return statistics.median(self.seconds)


Timer = Callable[[], float]
"""A clock, in seconds: ``time.perf_counter`` for the wall clock, ``time.process_time`` for the CPU
seconds of this process, which other work on the machine hardly changes."""


def in_turns(
    work: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: str,
    bar: Any = None,
    timer: Timer = time.perf_counter,
) -> dict[str, Timed]:
    """Run each contender once per round, one after the other, so that noise disturbs all alike.

    Args:
        work: function to time, for each contender.
        rounds: number of rounds.
        device: torch's name of the device.
        bar: progress bar that counts one for each run.
        timer: clock.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        for name, run in work.items():
            if bar is not None:
                bar.set_postfix_str(f"round {number + 1} of {rounds}: {name}")
            seconds[name].append(clock(run, device, timer))
            if bar is not None:
                bar.update()
    return {name: Timed(tuple(spent)) for name, spent in seconds.items()}


def clock(run: Callable[[], Any], device: str, timer: Timer = time.perf_counter) -> float:
    """Seconds of one call, with the work that it queues on the device."""
    settle(device)
    start = timer()
    run()
    settle(device)
    return timer() - start


def progress(total: int, what: str) -> Any:
    """A progress bar with the time left; it prints fewer lines where there is no terminal."""
    every = 0.5 if sys.stderr.isatty() else 20.0
    return tqdm(total=total, desc=what, unit="run", mininterval=every, dynamic_ncols=True)


def settle(device: str) -> None:
    """Wait until the device has done its queued work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def flops(run: Callable[[], Any]) -> float:
    """Matrix-product FLOPs of a call, as torch counts them (attention kernels included)."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def matmul_peak(
    device: str, dtype: torch.dtype, size: int = 0, timer: Timer = time.perf_counter
) -> float:
    """FLOP/s of a large square matrix product: the ceiling of all code that multiplies matrices.

    The faster of the libraries at hand counts. A CPU without a fast product of this number format
    would take minutes, and gets a small one.

    Args:
        device: torch's name of the device.
        dtype: number format of the matrices.
        size: side of the matrices; 0 chooses one for the device.
        timer: clock.
    """
    on_cpu = not device.startswith("cuda")
    slow = on_cpu and seconds_of_product(dtype, repeats=2) > 0.01  # 3 GFLOP/s
    size = size or (256 if slow else 1536 if on_cpu else 8192)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    repeats, tries = (1, 15) if on_cpu else (20, 3)  # a CPU's neighbours disturb

    def products(by: Callable[[Tensor, Tensor], Tensor]) -> None:
        for _ in range(repeats):
            by(a, b)

    spent = math.inf
    for by in (torch.matmul, product):
        products(by)
        spent = min(spent, *(clock(partial(products, by), device, timer) for _ in range(tries)))
    return 2 * size**3 * repeats / spent


def resident(field: str) -> int:
    """Bytes in this process's memory now (``VmRSS``) or at its peak (``VmHWM``)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])


def machine(device: str) -> dict[str, Any]:
    """Date, device, threads and version of torch of a measurement."""
    name = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text in aligned columns: the first one of words, the others of numbers."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def report(rows: Sequence[Sequence[str]], record: Mapping[str, Any]) -> None:
    """Print a table for people, and a last line of JSON for programs."""
    print(table(rows))
    print(json.dumps(record), flush=True)
