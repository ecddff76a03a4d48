"""A watchdog that ends a process whose training stands still.

A collective whose peer is gone can wait without end, and nobody sees where. The watchdog is told
of every step; when none comes for too long it prints the stacks of all threads and ends the
process, so that a scheduler can start the run again.
"""

import faulthandler
import os
import sys
import threading
import time

EXIT_CODE = 75  # EX_TEMPFAIL: worth another try


class Watchdog:
    """Ends this process when ``beat`` was not called for ``limit_s`` seconds.

    Args:
        limit_s: longest time between two beats in seconds; 0 or less watches nothing.
        rank: number of this rank, for the message.
    """

    def __init__(self, limit_s: float, rank: int) -> None:
        self._limit, self._rank = limit_s, rank
        self._doing, self._since = "starting", time.monotonic()
        self._stopped = threading.Event()
        if limit_s > 0:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def beat(self, doing: str) -> None:
        """Tell that the run moves, and that ``doing`` comes next."""
        self._doing, self._since = doing, time.monotonic()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._limit / 4)):
            if time.monotonic() - self._since > self._limit:
                self._end()

    def _end(self) -> None:
        print(
            f"error: rank {self._rank} has been {self._doing} for {self._limit:g} s "
            "(zero.timeout_s) and is stopped; the stacks of its threads follow. The same command "
            "resumes",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(EXIT_CODE)
