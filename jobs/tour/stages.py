"""The tour's stages: each runs the project's commands, and its time and memory are measured."""

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@dataclass
class Tour:
    """The tour's stages as they run: their commands, seconds, and the peak memory of all processes.

    Attributes:
        out: folder of everything that the tour makes.
        stages: number of stages.
        seconds: duration of each stage that has ended.
        peak_bytes: largest memory of this process and its descendants so far.
    """

    out: Path
    stages: int
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    _begin: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        threading.Thread(target=self._watch_memory, daemon=True).start()

    def _watch_memory(self) -> None:
        """Sample the memory of this process and all its descendants; shared pages count once."""
        me = psutil.Process()
        while True:
            total = sum(_resident(process) for process in [me, *me.children(recursive=True)])
            self.peak_bytes = max(self.peak_bytes, total)
            time.sleep(2)

    def begin(self, name: str, says: str) -> None:
        """Announce a stage and start its clock."""
        elapsed = time.monotonic() - self._begin
        print(
            f"\n[{len(self.seconds) + 1}/{self.stages}] {name}: {says}"
            f"  ({elapsed / 60:.1f} min so far)",
            flush=True,
        )
        self._started = time.monotonic()

    def end(self, name: str) -> None:
        """Stop a stage's clock."""
        self.seconds[name] = round(time.monotonic() - self._started, 1)

    def command(self, *words: object, launcher: str = "python") -> None:
        """Run one of the project's commands in a process of its own, and pass its output on.

        Args:
            words: script and options.
            launcher: program in front of them, ``python`` or ``deepspeed``.

        Raises:
            ValueError: the command failed; its own message stands above.
        """
        line = _shown(launcher, words)
        done = subprocess.run(line, cwd=ROOT, env=_environment(), check=False)
        _check(done.returncode, words[0])

    def commands(self, *lines: Sequence[object]) -> None:
        """Run several Python commands side by side.

        The output of each is passed on when it has ended, one after the other.

        Args:
            lines: script and options of each command.

        Raises:
            ValueError: one of them failed; its own message stands above.
        """

        def run(words: Sequence[object]) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                _shown("python", words),
                cwd=ROOT,
                env=_environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )

        with ThreadPoolExecutor(len(lines)) as pool:
            for words, done in zip(lines, pool.map(run, lines), strict=True):
                for line in done.stdout.splitlines():
                    print(line.rpartition("\r")[2])  # the last state of a progress bar
                _check(done.returncode, words[0])


def _shown(launcher: str, words: Sequence[object]) -> list[str]:
    """Print a command as a user would type it; returns it as it is run."""
    line = [launcher, *(str(word) for word in words)]
    print(f"$ {shlex.join(line)}", flush=True)
    return [str(BIN / launcher), *line[1:]]


def _check(code: int, name: object) -> None:
    if code:
        raise ValueError(f"this stage ended with exit code {code}: {name}")


def _resident(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended after it was listed
        return 0
    return getattr(memory, "pss", memory.rss)  # pss on Linux only


def _environment() -> dict[str, str]:
    """Environment of the commands: one thread for each process.

    Small matrices gain nothing from more threads, and ranks share the cores.
    """
    return os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
