"""Ranks that tell each other that they live, so that one that is lost in mid-step is noticed.

A process that dies closes its connections, and the others' collectives fail at once. A machine
whose power or link is cut closes nothing: the others would wait until their collective's limit,
half an hour by default.
"""

import os
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist

from cluster.ranks.dist import Process
from cluster.ranks.watchdog import EXIT_CODE

PATIENCE_S = 120.0
"""Longest silence of a rank, in seconds; an import or a read with Python's lock held is shorter."""
_LEFT = 1 << 40


class Peers:
    """Counts up in the run's store, and ends this process when the others are silent.

    Every rank but the first must reach the store, which the first rank holds; the first looks
    whether every other rank goes on counting.

    Args:
        here: this process; nothing is watched in a run of one rank.
        limit_s: longest silence in seconds; 0 or less watches nothing.
    """

    def __init__(self, here: Process, limit_s: float) -> None:
        self._here, self._limit = here, limit_s
        now = time.monotonic()
        others = range(1, here.world) if here.rank == 0 else (0,)
        self._heard = dict.fromkeys(others, now)
        self._stopped = threading.Event()
        self._store: dist.TCPStore | None = None
        if here.world > 1 and limit_s > 0:
            for name, target in (("peers", self._count), ("peers-watch", self._watch)):
                threading.Thread(target=target, daemon=True, name=name).start()

    def stop(self) -> None:
        """Stop watching, and tell the first rank that this one leaves."""
        self._stopped.set()
        if self._store is not None and self._here.rank:
            self._store.add(f"isthmus/alive/{self._here.rank}", _LEFT)

    def _count(self) -> None:
        """Talk to the store; a call may stand still for as long as the link is cut."""
        seen = dict.fromkeys(self._heard, -1)
        while not self._stopped.is_set():
            try:
                if self._store is None:
                    self._store = self._connect()
                if self._here.rank:
                    self._store.add(f"isthmus/alive/{self._here.rank}", 1)
                    self._heard[0] = time.monotonic()
                for rank in self._heard if self._here.rank == 0 else ():
                    count = self._store.add(f"isthmus/alive/{rank}", 0)
                    if count != seen[rank] or count >= _LEFT:
                        seen[rank], self._heard[rank] = count, time.monotonic()
            except RuntimeError:  # nobody answers: the other thread counts the seconds
                self._store = None
            self._stopped.wait(min(5.0, self._limit / 4))

    def _connect(self) -> dist.TCPStore:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        limit = timedelta(seconds=self._limit)
        return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._limit / 4)):
            now = time.monotonic()
            silent = [rank for rank, heard in self._heard.items() if now - heard > self._limit]
            if silent:
                self._end(silent)

    def _end(self, silent: list[int]) -> None:
        named = ", ".join(map(str, silent[:8])) + (" ..." if len(silent) > 8 else "")
        print(
            f"error: rank {self._here.rank} has not heard of rank {named} for {self._limit:g} s: "
            "the process, its machine or the link is gone; the same command resumes from the last "
            "checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_CODE)
