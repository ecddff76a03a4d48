"""A profiler trace of a few steps, on request: what a step's time is spent on."""

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cluster.ranks.dist import Process

STEPS = 3
FOLDER = "profile"


class Profile:
    """Records ``STEPS`` steps from step ``first`` on (counted from 1); nothing where it is 0.

    Each rank writes ``OUT/profile/rank_0000.json`` for https://ui.perfetto.dev and prints, rank 0
    only, the operators that took longest.
    """

    def __init__(self, first: int, out: Path, here: Process) -> None:
        self._first, self._folder, self._here = first, out / FOLDER, here
        self._running: Any = None

    def __enter__(self) -> "Profile":
        self.step(0)
        return self

    def __exit__(self, *error: object) -> None:
        if self._running is not None:
            self._finish()

    def step(self, made: int) -> None:
        """After step ``made``: begin or end the recording where it is time."""
        if not self._first:
            return
        if made == self._first - 1:
            kinds = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                kinds.append(ProfilerActivity.CUDA)
            self._running = profile(activities=kinds, record_shapes=True)
            self._running.__enter__()
        elif self._running is not None and made == self._first - 1 + STEPS:
            self._finish()

    def _finish(self) -> None:
        running, self._running = self._running, None
        running.__exit__(None, None, None)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"rank_{self._here.rank:04d}.json"
        running.export_chrome_trace(str(path))
        if self._here.rank == 0:
            on_device = self._here.device.type == "cuda"
            by = "self_cuda_time_total" if on_device else "self_cpu_time_total"
            print(running.key_averages().table(sort_by=by, row_limit=12, max_name_column_width=48))
            print(f"profile of steps {self._first} to {self._first + STEPS - 1}: {path}")
