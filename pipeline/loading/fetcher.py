"""Download of remote shards to the node's cache, some steps ahead of the training."""

import threading
from collections.abc import Iterator, Sequence

from cluster.storage.base import Unreachable
from cluster.storage.cache import Changed
from pipeline.shards.reading import OPEN_SHARDS, Shards


class Fetcher:
    """A thread that fetches remote shards before they are asked for.

    A reader that asks for a shard that is not here yet fetches it itself, or waits for this
    thread's copy; an error in the thread is met again there, where it can be reported.

    Args:
        needed: the (source, shard) pairs that each batch needs.
        ahead: number of batches to be ahead of the training.
    """

    def __init__(
        self, sources: Sequence[Shards], needed: Iterator[set[tuple[int, int]]], ahead: int
    ) -> None:
        self._sources, self._needed = sources, needed
        self._room, self._closed = threading.Semaphore(ahead), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        if any(source.remote for source in sources):
            self._thread.start()

    def step(self) -> None:
        """A step was taken: there is room for another one ahead."""
        self._room.release()

    def close(self) -> None:
        """Stop fetching; a fetch under way ends with the process or by itself."""
        self._closed.set()
        self._room.release()

    def _run(self) -> None:
        near: set[tuple[int, int]] = set()
        for wanted in self._needed:
            self._room.acquire()
            for source, shard in sorted(wanted - near):
                if self._closed.is_set():
                    return
                try:
                    self._sources[source].fetch(shard)
                except (OSError, ValueError, Changed, Unreachable):
                    return
            near = (near | wanted) if len(near) < 4 * OPEN_SHARDS else wanted
