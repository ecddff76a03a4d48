"""Saving beside the training: the loop pays for a copy to the CPU, a thread of rank 0 for the rest.

A copy takes 12 bytes a trainable parameter of rank 0's memory (2.2 GB for stage 1 with ViT-g)
until it is written; there is never more than one. The thread writes aside, waits for the disk,
reads back what the disk has, publishes, rotates. It sees nothing but that copy, so what it
publishes is the step that it says, whatever has trained on meanwhile.

A full disk does not stop a run: what was trained is worth more than one checkpoint on time, the
last good one stays, and the next save tries again. Only the last save of a process (the run's end,
or a stop) must succeed: where it does not, every rank says so and ends with an error.
"""

import math
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from cluster.checkpoint.files import OPTIMIZER, TRAINABLE, Damaged, fill
from cluster.checkpoint.store import BEST, FOLDER, LATEST, Store, rotate
from cluster.ranks import zero_state
from cluster.ranks.dist import Process, all_reduce
from cluster.storage.base import Unreachable

# What a disk or a store may do to a write; anything else is a fault of ours and ends the run.
FAILURES = (OSError, SafetensorError, Unreachable, ValueError)
Files = Mapping[str, dict[str, Tensor]]


class NotSaved(ValueError):
    """The last checkpoint of a process could not be written; earlier ones are intact."""


class Writer:
    """Saves the checkpoints of a run, one at a time.

    Args:
        store: the run's checkpoints.
        keep: number of the newest checkpoints that stay, besides the best.
        good: address of the last good checkpoint; "" where there is none yet.
    """

    def __init__(self, store: Store, keep: int = 2, good: str = "") -> None:
        self._store, self._keep, self._good = store, keep, good or "none yet"
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[str] | None = None

    @property
    def url(self) -> str:
        """The run's folder or URL."""
        return self._store.url

    def save(
        self,
        engine: Any,
        here: Process,
        *,
        recipe: Mapping[str, Any],
        state: Mapping[str, Any],
        metric: float | None = None,
        last: bool = False,
    ) -> str:
        """Copy the engine's trainable state as of ``state["step"]``, and have it written.

        Collective: it waits for the checkpoint before this one, gathers, and returns.

        Args:
            metric: lower is better; the checkpoint with the lowest one is kept as ``best``.
            last: wait until it is published.

        Returns:
            The address that it will have.

        Raises:
            NotSaved: it is the last one and could not be written; on all ranks.
        """
        name = f"step_{state['step']:08d}"
        where = f"{self._store.url}/{FOLDER}/{name}"
        if here.rank == 0:
            self.wait()
        files = {
            TRAINABLE: gather(engine, here, (zero_state.MASTER,)),
            OPTIMIZER: gather(engine, here, zero_state.MOMENTS),
        }
        if here.rank == 0:
            complete = {**state, "updates": zero_state.read_count(engine), "metric": metric}
            self._pool = self._pool or ThreadPoolExecutor(1, "checkpoint")
            self._pending = self._pool.submit(
                self._write, name, files, dict(recipe), complete, warn=not last
            )
        del files  # the thread's copy is the only one
        if last:
            failure = self.wait()
            if all_reduce([bool(failure)], "max")[0]:
                raise NotSaved(self._last_words(where, failure))
        return where

    def wait(self) -> str:
        """Wait for the checkpoint being written; what went wrong with it, "" for nothing."""
        pending, self._pending = self._pending, None
        return pending.result() if pending is not None else ""

    def _write(
        self,
        name: str,
        files: Files,
        recipe: dict[str, Any],
        state: dict[str, Any],
        *,
        warn: bool,
    ) -> str:
        """In the thread: publish one checkpoint, or return (and say loudly) why not."""
        start, aside = time.perf_counter(), None
        try:
            aside = self._store.make_aside(name)
            fill(aside, files, recipe, state)
            self._store.push_logs()
            self._store.publish(aside, name)
            self._store.point(LATEST, name)
            if self._is_best(name, state["metric"]):
                self._store.point(BEST, name)
        except FAILURES as error:
            if aside is not None:  # it may be what fills the disk
                shutil.rmtree(aside, ignore_errors=True)
            if warn:
                self._warn(f"checkpoint {name} could not be written ({error})")
            return str(error)
        size = sum(file["bytes"] for file in state["files"].values())
        seconds = time.perf_counter() - start
        self._good = where = f"{self._store.url}/{FOLDER}/{name}"
        print(f"saved {where} ({size / 1e6:,.1f} MB in {seconds:.1f} s)", flush=True)
        try:
            rotate(self._store, self._keep)
        except FAILURES as error:
            self._warn(f"older checkpoints could not be removed ({error})")
        return ""

    def _is_best(self, name: str, metric: float | None) -> bool:
        if metric is None or not math.isfinite(metric):
            return False
        best = self._store.pointer(BEST)
        if best == name or best not in self._store.names():
            return True
        try:
            before = self._store.state(best).get("metric")
        except Damaged:
            return True
        return before is None or metric < before

    def _warn(self, what: str) -> None:
        print(
            f"WARNING: {what}; the last good one is {self._good}; training goes on, "
            "and the next save tries again",
            flush=True,
        )

    def _last_words(self, where: str, failure: str) -> str:
        if not failure:
            return f"checkpoint {where} could not be written; rank 0 says why"
        return (
            f"checkpoint {where} could not be written ({failure}); the last good one is "
            f"{self._good}: make room, and the same command resumes from it"
        )


def gather(engine: Any, here: Process, kinds: tuple[str, ...]) -> dict[str, Tensor]:
    """Copies of whole tensors on rank 0's CPU; the other ranks only take part. Collective."""
    gathered = {}
    for kind in kinds:
        prefix = "" if kind == zero_state.MASTER else f"{kind}/"
        for name, tensor in zero_state.read(engine, kind):
            if here.rank == 0:
                gathered[prefix + name] = tensor.detach().to("cpu", torch.float32, copy=True)
    return gathered
