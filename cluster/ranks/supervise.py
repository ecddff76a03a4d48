"""Ranks that end when their launcher is gone, and that explain the loss of other ranks.

DeepSpeed's launcher dies alone (DeepSpeed#4098): killed, it leaves its ranks running, where they
hold the GPUs and, on several machines, keep writing beside the run that replaces them.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

import torch.distributed as dist

SUPERVISOR = "ISTHMUS_SUPERVISOR"
"""Environment variable with the process id of the launcher's starter, which is watched too."""
_PERIOD = 1.0


def start(patience_s: float = 600.0) -> None:
    """Watch this rank's launchers, and let an error that comes from lost ranks be one line."""
    _watch_launchers(patience_s)
    _explain_lost_ranks()


def _watch_launchers(patience_s: float) -> None:
    """Watch this rank's launchers from a thread; once one is gone, send ourselves SIGTERM.

    The training loop then saves and ends within a step. A rank that does not end so, because it
    waits for others that are dead, is killed.

    Args:
        patience_s: seconds that ending may take.
    """
    started_by = launchers()
    if not started_by and "CROSS_RANK" not in os.environ:
        return  # by a person, or by something that is no launcher
    args = (started_by, patience_s)
    threading.Thread(target=_watch, args=args, name="launcher-watch", daemon=True).start()


def launchers() -> dict[int, str]:
    """The processes that must live as long as this one: DeepSpeed's launchers above it, and the
    supervisor named in the environment.

    Returns:
        A mark of each process (its start time) by process id.
    """
    found: dict[int, str] = {}
    process = os.getppid()
    while _is_launcher(process):
        found[process] = _mark(process)
        process = _parent(process)
    named = int(os.environ.get(SUPERVISOR, "0"))
    if named:
        found[named] = _mark(named)
    return found


def _watch(started_by: dict[int, str], patience_s: float) -> None:
    # Without any launcher above us, ours died before we looked.
    while started_by and all(mark and _mark(pid) == mark for pid, mark in started_by.items()):
        time.sleep(_PERIOD)
    rank = os.environ.get("RANK", "0")
    print(f"rank {rank}: its launcher is gone; saving and stopping", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(patience_s)
    os.kill(os.getpid(), signal.SIGKILL)


def _explain_lost_ranks() -> None:
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        why = lost_ranks(error)
        if not why:
            return before(kind, error, trace)
        rank = os.environ.get("RANK", "0")
        print(
            f"error: rank {rank} lost the other ranks ({why}): one of them has died or is stuck, "
            "and says why itself if it could; the same command resumes from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )

    sys.excepthook = hook


def lost_ranks(error: BaseException) -> str:
    """The message of a collective that failed because other ranks are gone; "" for other errors."""
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, dist.DistError):  # NCCL's, and those of the store
        return text
    if isinstance(error, RuntimeError) and "gloo/" in text:  # gloo has no class of its own
        return text.partition("] ")[2].partition(". This is typically")[0]
    return ""


def _is_launcher(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    names = {word.rpartition(b"/")[2] for word in words[:4]}
    return bool(names & {b"deepspeed", b"ds", b"deepspeed.launcher.launch"})


def _fields(pid: int) -> list[str]:
    """State, parent, ... of a process (proc(5), from the third field on); empty without one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text[text.rindex(")") + 1 :].split()


def _parent(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[1]) if fields else 0


def _mark(pid: int) -> str:
    """When it started, which tells it from a later process of the same id; "" once it is dead."""
    fields = _fields(pid)
    return fields[19] if fields and fields[0] not in "ZX" else ""
