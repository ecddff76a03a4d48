"""Scheduled evaluation: every new checkpoint of a run is evaluated once, by whoever is first.

    RUN/evaluations/SUITE-DIGEST/step_00000200-CHECKPOINT/   claim, answers, results.json, done.json
                                 history/…parquet            a row a number
                                 tensorboard/                the same for TensorBoard
                                 index.html                  the leaderboard

Find, claim, pin, evaluate in a process of its own, publish, unpin. The watcher has no state: all of
it is in these files, so that it may be killed and started again at any moment, and any number of
watchers share the work. Training is never waited for and never waits; its checkpoints are kept for
the watcher (``cluster.checkpoint.pins``).
"""

import ctypes
import datetime
import json
import multiprocessing
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster import checkpoint, claims
from cluster.checkpoint import pins
from cluster.checkpoint.pins import DONE
from cluster.storage.base import absolute_url, as_url
from cluster.storage.open import open_storage
from evaluation.board import history
from evaluation.board.page import write_board
from evaluation.board.tensorboard import write_events
from jobs.evaluation.arguments import EvaluateArgs
from jobs.evaluation.run import evaluate
from jobs.evaluation.suite import suite_of
from jobs.prediction.identity import digest_of_checkpoint

FOLDER = "evaluations"


@dataclass(frozen=True)
class Job:
    """One checkpoint to evaluate.

    Attributes:
        step: name of the checkpoint.
        name: name of the evaluation's folder: the step and the digest of the checkpoint.
    """

    step: str
    name: str


class Watch:
    """The checkpoints of a run, evaluated as they appear.

    Args:
        args: options with ``watching.watch`` and a suite.

    Raises:
        ValueError: there is no such suite.
    """

    def __init__(self, args: EvaluateArgs) -> None:
        assert args.watching.watch is not None
        suite = suite_of(args)
        assert suite is not None  # EvaluateArgs has checked it
        self._args = args
        self._run = absolute_url(as_url(args.watching.watch))
        self._store = checkpoint.open_store(self._run)
        self.suite = f"{suite.name}-{suite.digest}"
        self.url = f"{self._run}/{FOLDER}/{self.suite}"
        self._files = open_storage(self.url)
        self._seen: set[str] = set()

    def forever(self) -> None:
        """Evaluate what there is, and look again every so often; ``--once``: not again."""
        watching = self._args.watching
        with claims.alive(self._store.files, [pins.waiting(watching.stride, self.suite)]):
            while True:
                began = time.monotonic()
                while self.one():
                    pass
                self.publish()
                if watching.once:
                    return
                time.sleep(max(0.0, began + watching.seconds - time.monotonic()))

    def one(self) -> bool:
        """Evaluate the newest checkpoint that nobody has evaluated or claimed, if there is one."""
        for job in self.find():
            claim = claims.take(self._files, job.name)
            if not claim:
                continue
            pin = pins.reading(job.step, self.suite)
            with claims.alive(self._files, [claim]), claims.alive(self._store.files, [pin]):
                here = job.step in self._store.names()  # pinned first, looked for afterwards
                if here and not self._files.exists(f"{job.name}/{DONE}"):
                    self._evaluate(job)
            pins.unpin(self._store.files, pin)
            return True
        return False

    def find(self) -> list[Job]:
        """The checkpoints without results, newest first."""
        stride = self._args.watching.stride
        steps = [name for name in self._store.names() if int(name[5:]) % stride == 0]
        jobs = []
        for step in reversed(steps):
            name = f"{step}-{digest_of_checkpoint(self._store, step)}"
            if not name.endswith("-") and not self._files.exists(f"{name}/{DONE}"):
                jobs.append(Job(step, name))
        for gone in sorted(self._seen - set(steps)):
            _say(f"{gone} was removed by its run before it was evaluated")
        self._seen = {job.step for job in jobs}
        return jobs

    def publish(self) -> None:
        """Bring history, TensorBoard and leaderboard up to the results that are there."""
        changed = False
        for name, results, finished in self._finished():
            write_events(self._files, name, results)
            if history.has(self._files, name):
                continue
            rows = history.entries_of(
                results, run=self._run, name=name, suite=self.suite, finished=finished
            )
            history.append(self._files, name, rows)
            changed = True
        if changed or not self._files.exists("index.html"):
            self._draw()

    def _evaluate(self, job: Job) -> None:
        """Evaluate a checkpoint in a process of its own, which ends with this one."""
        where = f"{self._run}/{checkpoint.FOLDER}/{job.step}"
        out = f"{self.url}/{job.name}"
        _say(f"evaluating {job.step}")
        args = replace(
            self._args,
            checkpoint=Path(where),
            out=Path(out),
            watching=replace(self._args.watching, watch=None),
        )
        process = multiprocessing.get_context("spawn").Process(target=_run, args=(args,))
        process.start()
        process.join()
        if process.exitcode:
            if job.step not in self._store.names():
                _say(f"{job.step} was removed by its run while it was read")
                return
            raise ValueError(
                f"the evaluation of {where} ended with exit code {process.exitcode}; its own "
                "message stands above. The next start goes on from its answers"
            )
        done = {"finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
        self._files.publish(f"{job.name}/{DONE}", json.dumps(done).encode())
        self.publish()

    def _finished(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        """Name, results and time of each evaluation that is done."""
        for entry in self._files.entries(deep=True):
            if entry.name.endswith(f"/{DONE}"):
                name = entry.name.removesuffix(f"/{DONE}")
                results = json.loads(self._files.read(f"{name}/results.json"))
                yield name, results, json.loads(self._files.read(entry.name))["finished"]

    def _draw(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "index.html"
            write_board(page, self.suite, history.read(self._files))
            self._files.replace("index.html", page.read_bytes())
        _say(f"leaderboard: {self.url}/index.html")


def _run(args: EvaluateArgs) -> None:
    """Evaluate, in a process that ends when the watcher does."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    try:
        evaluate(args)
    except (ValueError, OSError) as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(1)


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} watch: {what}", flush=True)
