"""Training under fire: launcher, ranks, or all of a run killed at random, also while it saves.

    python tests/chaos_train.py --kills 20 --steps 200 --ranks 2
    python tests/chaos_train.py --kills 3 --steps 24 --ranks 2 --small

Stage 1 of the recipe ``tinyworld`` (``--small``: a Q-Former of width 32) through DeepSpeed's own
launcher on gloo ranks. A kill comes at a random moment of the start (imports, restore, the first
step), of a step, or of a save. In the end the log, as the restarts have stitched it, and the last
checkpoint must equal those of one undisturbed run, bit for bit.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from tests/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import psutil

from cluster import checkpoint
from cluster.logfiles import records_so_far
from cluster.runlog import LOG
from tests.jobs.training.test_training import ENV, ROOT, SMALL, curve, launcher
from tests.tiny_training import capfilt_output, tiny_clip

LIMIT = 3600  # seconds in which a run must come to its end
ORPHANS = 90  # seconds in which what a kill has left must have ended
MOMENTS = ("start", "step", "step", "save", "save")
VICTIMS = ("all", "all", "rank", "launcher")


@dataclass
class Chaos:
    """One run, and what is done to it."""

    arguments: list[str]
    out: Path
    ranks: int
    seed: int
    kills: int
    done: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    startup: float = 10.0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.said = self.out.with_suffix(".txt")

    def run(self) -> None:
        """Kill until it is enough, then let the job end.

        Raises:
            AssertionError: the job failed by itself, or left ranks behind.
        """
        end = time.monotonic() + LIMIT
        while self.kills > sum(self.done.values()):
            assert time.monotonic() < end, "the run does not end"
            process = self._start()
            moment = self.random.choice(MOMENTS)
            if not self._wait_for(moment, process):  # it was quicker than the kill
                break
            victim = self.random.choice(VICTIMS)
            self._kill(victim, process)
            self.done[f"{moment}/{victim}"] += 1
        process = self._start()
        assert process.wait(timeout=end - time.monotonic()) == 0, self.said.read_text()[-3000:]

    def _start(self) -> subprocess.Popen:
        self.starts += 1
        command = launcher(self.arguments, self.ranks)
        with open(self.said, "a") as said:
            return subprocess.Popen(
                command, cwd=ROOT, env=ENV, stdout=said, stderr=said, start_new_session=True
            )

    def _wait_for(self, moment: str, process: subprocess.Popen) -> bool:
        """Sleep until the moment has come; False where the run has ended before."""
        first, begun = step_of(self.out), time.monotonic()
        if moment == "start":
            time.sleep(self.random.uniform(0.5, self.startup))
        else:
            target = self._saves if moment == "save" else self._has_made
            goal = self.random.randint(1, 12 if moment == "step" else 2)
            while not target(first, goal):
                if process.poll() is not None:
                    return False
                time.sleep(0.001)
            if moment == "step":
                self.startup = max(5.0, min(60.0, time.monotonic() - begun))
            time.sleep(self.random.uniform(0, 0.4 if moment == "step" else 0.1))
        return process.poll() is None

    def _has_made(self, first: int, goal: int) -> bool:
        time.sleep(0.02)
        return step_of(self.out) >= first + goal

    def _saves(self, first: int, goal: int) -> bool:
        return any((self.out / checkpoint.FOLDER).glob(".step_*.partial"))

    def _kill(self, victim: str, process: subprocess.Popen) -> None:
        """SIGKILL, and wait until nothing of the run is left."""
        ranks = [p for p in family(process.pid) if "--local_rank=" in " ".join(cmdline(p))]
        if victim == "rank" and ranks:
            self.random.choice(ranks).kill()
        elif victim == "launcher":
            launch = [p for p in family(process.pid) if "deepspeed.launcher.launch" in cmdline(p)]
            self.random.choice([psutil.Process(process.pid), *launch]).kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        limit = time.monotonic() + ORPHANS
        while family(process.pid):
            process.poll()
            if time.monotonic() > limit:
                left = [cmdline(p) for p in family(process.pid)]
                os.killpg(process.pid, signal.SIGKILL)
                raise AssertionError(f"still there after {victim} was killed: {left}")
            time.sleep(0.05)
        process.wait()


def family(session: int) -> list[psutil.Process]:
    """All living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def cmdline(process: psutil.Process) -> list[str]:
    """Its command line, empty once it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def step_of(out: Path) -> int:
    """The last step in a run's log."""
    records = records_so_far(out / LOG)
    return records[-1]["step"] if records else 0


def arguments(folder: Path, out: Path, steps: int, small: bool) -> list[str]:
    """The job's command line."""
    sizes = ["--encoder.name", str(folder / "clip"), *SMALL]
    common = [*("--global-batch", "32", "--log-every", "1", "--save-every", "10")]
    return [
        *("jobs/stage1.py", "--recipe", "tinyworld", "--data", str(folder / "data")),
        *("--out", str(out), "--steps", str(steps), *(sizes if small else common)),
    ]


def check(chaos: Chaos, whole: Path) -> None:
    """Hold the run against the undisturbed one."""
    assert curve(chaos.out) == curve(whole)
    one, other = checkpoint.find(chaos.out), checkpoint.find(whole)
    assert one.state["files"] == other.state["files"]
    print(
        f"seed {chaos.seed}: {len(curve(whole))} steps and the last checkpoint equal the "
        f"undisturbed run after {dict(sorted(chaos.done.items()))} kills, {chaos.starts} starts",
        flush=True,
    )


def main() -> None:
    """One undisturbed run, and one under fire for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as made:
        folder = Path(made)
        tiny_clip(folder / "clip")
        capfilt_output(folder / "data", shards=4, samples=40)
        whole = folder / "whole"
        plain = launcher(arguments(folder, whole, args.steps, args.small), args.ranks)
        subprocess.run(plain, cwd=ROOT, env=ENV, check=True, stdout=subprocess.DEVNULL)
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            out = folder / f"out{seed}"
            job = arguments(folder, out, args.steps, args.small)
            chaos = Chaos(job, out, args.ranks, seed, args.kills)
            chaos.run()
            check(chaos, whole)


if __name__ == "__main__":
    main()
