"""The log of a training run: a console line an interval, and the same record in ``log.jsonl``.

Only rank 0 writes. On a resume, records behind the checkpoint are cut off, so that the file reads
like that of a run that was never interrupted.
"""

import hashlib
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cluster.logfiles import append_record, cut_after
from cluster.ranks.dist import Process
from cluster.ranks.guard import Skipped

LOG, SKIPPED, VALIDATION = "log.jsonl", "skipped.jsonl", "validation.jsonl"


class RunLog:
    """Measures steps and reports them.

    Args:
        out: folder of the run.
        here: this process; only rank 0 writes.
        steps: number of steps of the whole run.
        done: number of steps that were made before.
        every: number of steps between two records; the first and the last step always have one.
        samples: samples of a step, over all ranks.
        tensorboard: whether TensorBoard gets the records too.
        wandb: project of Weights & Biases that gets the records too; "" for none.
        peak_steps_per_s: steps a second that the devices would make at their peak, for the share
            of it that is reached (MFU); 0 where the peak is not known.
    """

    def __init__(
        self,
        out: Path,
        here: Process,
        *,
        steps: int,
        done: int,
        every: int,
        samples: int,
        tensorboard: bool = False,
        wandb: str = "",
        peak_steps_per_s: float = 0.0,
    ) -> None:
        self.folder = out
        self.here, self.steps, self.every, self.samples = here, steps, max(1, every), samples
        self._path = out / LOG
        self._waited = 0.0
        self._since, self._since_step = time.perf_counter(), done
        self._peak = peak_steps_per_s
        self._extra: dict[str, Any] = {}  # for the next record
        self._boards: list[_Board] = []
        if here.rank == 0:
            out.mkdir(parents=True, exist_ok=True)
            for name in (LOG, SKIPPED, VALIDATION):
                cut_after(out / name, done)
            if tensorboard:
                self._boards.append(_tensorboard(out))
            if wandb:
                self._boards.append(_wandb(wandb, out))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block whose time counts as the loop's waiting for data."""
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
        order = ("loss", *sorted(losses.keys() - {"loss"}))
        record = {
            "step": step,
            **{name: _finite(losses[name]) for name in order},
            "grad_norm": _finite(norm),
            "lr": lr,
            "images_per_s": round(self.samples * made / seconds, 1),
            **({"mfu": round(made / seconds / self._peak, 4)} if self._peak else {}),
            "data_wait": round(self._waited / seconds, 4),
            "memory_gb": round(peak_memory(self.here) / 2**30, 2),
            "eta_s": round((self.steps - step) * seconds / made, 1),
            **self._extra,
        }
        self._since, self._since_step, self._waited, self._extra = now, step, 0.0, {}
        if self.here.rank == 0:
            append_record(self._path, record)
            self.say(_line(record, self.steps))
            self._tell_boards(record)

    def skipped(self, steps: Sequence[Skipped]) -> None:
        """Report steps that were not applied, on the console and in ``skipped.jsonl``."""
        for this in steps:
            self._extra["skipped"] = self._extra.get("skipped", 0) + 1
            if self.here.rank == 0:
                append_record(self.folder / SKIPPED, vars(this))
            shown = ", ".join(this.samples[:3]) + (", …" if len(this.samples) > 3 else "")
            self.say(f"step {this.step} was skipped: {this.reason}; samples {shown} ({SKIPPED})")

    def validated(self, step: int, losses: Mapping[str, float]) -> None:
        """Report the losses on the validation samples after ``step``."""
        named = {f"val_{name}": _finite(value) for name, value in losses.items()}
        if self.here.rank == 0:
            append_record(self.folder / VALIDATION, {"step": step, **named})
            self._tell_boards({"step": step, **named})
        text = "  ".join(f"{k} {v:.4f}" for k, v in named.items() if v is not None)
        self.say(f"validation after step {step}  {text}")

    def say(self, text: str) -> None:
        """Print a line on rank 0."""
        if self.here.rank == 0:
            print(text, file=sys.stdout, flush=True)

    def close(self) -> None:
        """Let TensorBoard and Weights & Biases write their records out."""
        for board in self._boards:
            board.close()

    def _tell_boards(self, record: Mapping[str, Any]) -> None:
        for board in self._boards:
            board.tell({name: value for name, value in record.items() if value is not None})


def peak_memory(here: Process) -> int:
    """The most bytes that this rank has held: of its GPU where it has one, else of the process."""
    if here.device.type == "cuda":
        return torch.cuda.max_memory_allocated(here.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _finite(value: float | None) -> float | None:
    """A number as JSON can hold it."""
    return value if value is not None and math.isfinite(value) else None


def _line(record: Mapping[str, Any], steps: int) -> str:
    fixed = {"step", "grad_norm", "lr", "images_per_s", "mfu", "data_wait", "memory_gb", "eta_s"}
    shown = {k: v for k, v in record.items() if k not in fixed | {"skipped"}}
    losses = "  ".join(f"{k} {'not finite' if v is None else f'{v:.4f}'}" for k, v in shown.items())
    norm = record["grad_norm"]
    return (
        f"step {record['step']:>{len(str(steps))}}/{steps}  {losses}"
        + (f"  norm {norm:.2f}" if norm is not None else "")
        + f"  lr {record['lr']:.2e}  {record['images_per_s']:.0f} images/s"
        + (f"  MFU {100 * record['mfu']:.0f}%" if "mfu" in record else "")
        + f"  data-wait {100 * record['data_wait']:.0f}%  {record['memory_gb']:.1f} GB"
        f"  ETA {_clock(record['eta_s'])}"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Board(NamedTuple):
    """Another program that gets the records."""

    tell: Callable[[Mapping[str, Any]], None]
    close: Callable[[], None]


def _tensorboard(out: Path) -> _Board:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as missing:
        raise ValueError(
            "run.tensorboard = True, but tensorboard is not installed; pip install tensorboard, "
            "or leave it off"
        ) from missing
    writer = SummaryWriter(str(out / "tensorboard"))

    def tell(record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, record["step"])
        writer.flush()  # a save to S3 takes the file as it is

    return _Board(tell, writer.close)


def _wandb(project: str, out: Path) -> _Board:
    try:
        import wandb
    except ImportError as missing:
        raise ValueError(
            f"run.wandb = {project!r}, but wandb is not installed; pip install wandb, or leave it "
            "off"
        ) from missing
    # One name a folder: a resumed run goes on in the same curves.
    name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    run = wandb.init(project=project, dir=str(out), id=name, name=out.name, resume="allow")

    def tell(record: Mapping[str, Any]) -> None:
        run.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])

    return _Board(tell, run.finish)
