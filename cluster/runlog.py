"""What a training run tells: a console line an interval, and the same record in ``log.jsonl``.

Only rank 0 writes. On a resume, records behind the checkpoint are cut off, so that the file reads
like that of a run that was never interrupted.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cluster.dist import Place

LOG = "log.jsonl"


class RunLog:
    """Measures steps and reports them.

    Args:
        steps: of the whole run; ``done`` of them were made before.
        every: steps between two records; the first and the last step always have one.
        samples: a step, over all ranks.
    """

    def __init__(
        self,
        out: Path,
        here: Place,
        *,
        steps: int,
        done: int,
        every: int,
        samples: int,
        tensorboard: bool = False,
    ) -> None:
        self.here, self.steps, self.every, self.samples = here, steps, max(1, every), samples
        self._path = out / LOG
        self._waited = 0.0
        self._since, self._since_step = time.perf_counter(), done
        self._board: Any = None
        if here.rank == 0:
            out.mkdir(parents=True, exist_ok=True)
            _cut(self._path, done)
            self._board = _tensorboard(out) if tensorboard else None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent in this block is the loop waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def due(self, step: int) -> bool:
        """Whether step ``step`` (counted from 1) has a record."""
        return step == 1 or step % self.every == 0 or step == self.steps

    def report(self, step: int, losses: Mapping[str, float], lr: float, norm: float | None) -> None:
        """Write the record of ``step`` (counted from 1); ``losses`` are means over ranks."""
        now = time.perf_counter()
        seconds, made = now - self._since, step - self._since_step
        record = {
            "step": step,
            **{name: losses[name] for name in ("loss", *sorted(losses.keys() - {"loss"}))},
            "grad_norm": norm,
            "lr": lr,
            "images_per_s": round(self.samples * made / seconds, 1),
            "data_wait": round(self._waited / seconds, 4),
            "memory_gb": round(peak_memory(self.here) / 2**30, 2),
            "eta_s": round((self.steps - step) * seconds / made, 1),
        }
        self._since, self._since_step, self._waited = now, step, 0.0
        if self.here.rank == 0:
            with open(self._path, "a") as file:
                file.write(json.dumps(record) + "\n")
            self.say(_line(record, self.steps))
            self._to_board(record)

    def say(self, text: str) -> None:
        """Print a line on rank 0."""
        if self.here.rank == 0:
            print(text, file=sys.stdout, flush=True)

    def _to_board(self, record: Mapping[str, Any]) -> None:
        if self._board is not None:
            for name, value in record.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(name, value, record["step"])


def read_log(out: Path) -> list[dict[str, Any]]:
    """The records of a run, oldest first; an unfinished last line does not count."""
    path = out / LOG
    return _parse(path.read_text()) if path.is_file() else []


def peak_memory(here: Place) -> int:
    """Most bytes this rank has held: of the GPU where it has one, else of the process."""
    if here.device.type == "cuda":
        return torch.cuda.max_memory_allocated(here.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _parse(text: str) -> list[dict[str, Any]]:
    records = []
    for line in text.splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break  # killed while writing it: nothing after it counts
    return records


def _cut(path: Path, done: int) -> None:
    if path.is_file():
        kept = [record for record in _parse(path.read_text()) if record["step"] <= done]
        aside = path.with_name(f".{path.name}.partial")
        aside.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(aside, path)


def _line(record: Mapping[str, Any], steps: int) -> str:
    fixed = {"step", "grad_norm", "lr", "images_per_s", "data_wait", "memory_gb", "eta_s"}
    losses = "  ".join(f"{k} {v:.4f}" for k, v in record.items() if k not in fixed)
    norm = record["grad_norm"]
    return (
        f"step {record['step']:>{len(str(steps))}}/{steps}  {losses}"
        + (f"  norm {norm:.2f}" if norm is not None else "")
        + f"  lr {record['lr']:.2e}  {record['images_per_s']:.0f} images/s"
        f"  data-wait {100 * record['data_wait']:.0f}%  {record['memory_gb']:.1f} GB"
        f"  ETA {_clock(record['eta_s'])}"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _tensorboard(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as missing:
        raise ValueError(
            "run.tensorboard = True, but tensorboard is not installed; pip install tensorboard, "
            "or leave it off"
        ) from missing
    return SummaryWriter(str(out / "tensorboard"))
