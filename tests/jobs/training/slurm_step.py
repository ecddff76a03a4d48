#!/usr/bin/env python
"""Stand-in for ``srun``: starts a task on each "node", signals and ends it as slurmstepd does.

    srun --kill-on-bad-exit=1 COMMAND...

- A task is a session of its own, whose first process is its leader.
- Once the file ``$PREEMPT`` is there, *every* process of every task gets SIGCONT and SIGTERM, the
  leader included, and two minutes later SIGKILL.
- When a leader has ended, what is left of its task is killed at once.
- A task that fails ends the others.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

KILL_WAIT = 120.0  # `--signal=TERM@120`


def processes(task: subprocess.Popen) -> list[psutil.Process]:
    """All that is alive of a task."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == task.pid:
                found.append(process)
    return found


def signal_all(tasks: list[subprocess.Popen], *numbers: int) -> None:
    for task in tasks:
        for process in processes(task):
            for number in numbers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)


def main(command: list[str]) -> int:
    """Run the tasks; the largest exit code, 128 + the signal for one that a signal ended."""
    nodes = int(os.environ["SLURM_NNODES"])
    tasks = [
        subprocess.Popen(
            command, env={**os.environ, "SLURM_NODEID": str(node)}, start_new_session=True
        )
        for node in range(nodes)
    ]
    codes: dict[int, int] = {}
    deadline = float("inf")
    while len(codes) < nodes:
        time.sleep(0.1)
        ending = Path(os.environ["PREEMPT"]).exists() or any(codes.values())
        if ending and deadline == float("inf"):
            deadline = time.monotonic() + KILL_WAIT
            signal_all(tasks, signal.SIGCONT, signal.SIGTERM)
        if time.monotonic() > deadline:
            signal_all(tasks, signal.SIGKILL)
        for node, task in enumerate(tasks):
            if node not in codes and (code := task.poll()) is not None:
                codes[node] = 128 - code if code < 0 else code
                signal_all([task], signal.SIGKILL)
    return max(codes.values())


if __name__ == "__main__":
    sys.exit(main([word for word in sys.argv[1:] if not word.startswith("--kill-on")]))
