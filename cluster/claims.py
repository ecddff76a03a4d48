"""Claims: the right of one process among many, on any machines, to do a piece of work.

    FOLDER/claim-0001.json        who has it: machine, process, time; created by one of any number
    FOLDER/claim-0001.beat        the time at which the owner was last alive
    FOLDER/claim-0002.json        taken over, because the owner was gone

Creation is exclusive in every store (a link, or a conditional write to S3), and so is taking over:
it creates the next number. An owner that died on this machine is known to be gone at once, one on
another machine when its time is too old.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.storage.base import Conflict, Storage

BEAT_SECONDS, STALE_SECONDS = 30.0, 900.0


def take(storage: Storage, folder: str, stale: float = STALE_SECONDS) -> str:
    """Claim the work of a folder.

    Args:
        stale: age in seconds from which a sign of life of another machine is too old.

    Returns:
        Name of the claim, for ``alive``; "" where another process has the work.
    """
    newest = _newest(storage, folder)
    if newest and _lives(storage, folder, newest, stale):
        return ""
    name = f"{folder}/claim-{newest + 1:04d}"
    owner = {"host": _machine(), "pid": os.getpid(), "started": _started(os.getpid()),
             "at": time.time(), "draw": secrets.token_hex(8)}  # fmt: skip
    try:
        storage.publish(f"{name}.json", json.dumps(owner).encode())
    except Conflict:
        return ""
    return name


@contextlib.contextmanager
def alive(storage: Storage, names: list[str], period: float = BEAT_SECONDS) -> Iterator[None]:
    """Inside, signs of life are written for files by their names, every ``period`` seconds.

    The list may change meanwhile.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(period):
            for name in list(names):
                with contextlib.suppress(Exception):  # the next one may arrive
                    mark(storage, name)

    for name in list(names):
        mark(storage, name)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def mark(storage: Storage, name: str) -> None:
    """Write a sign of life."""
    storage.replace(f"{name}.beat", json.dumps({"at": time.time()}).encode())


def age(storage: Storage, name: str) -> float:
    """Seconds since the last sign of life; infinite without one."""
    try:
        return time.time() - float(json.loads(storage.read(f"{name}.beat"))["at"])
    except (FileNotFoundError, ValueError, KeyError):
        return float("inf")


def _newest(storage: Storage, folder: str) -> int:
    names = (Path(entry.name).name for entry in storage.entries(folder))
    found = [
        int(name[6:10]) for name in names if name.startswith("claim-") and name[-5:] == ".json"
    ]
    return max(found, default=0)


def _lives(storage: Storage, folder: str, number: int, stale: float) -> bool:
    """Whether the owner of a claim is at work."""
    name = f"{folder}/claim-{number:04d}"
    owner = json.loads(storage.read(f"{name}.json"))
    if owner["host"] == _machine():
        return _started(owner["pid"]) == owner["started"]
    return min(age(storage, name), time.time() - owner["at"]) < stale


def _machine() -> str:
    """Name of this machine since it was started."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.is_file() else ''}"


def _started(pid: int) -> str:
    """Time at which a process of this machine was started, as Linux has it; "" if it has ended.

    A process that takes the number of one that has ended was started at another time.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
