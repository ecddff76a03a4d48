"""Download of remote shards to the node's cache, whole blocks of them ahead of the training."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from pipeline.shards.reading import Shards

Pair = tuple[int, int]

_LOOK_S = 2.0  # until shards that others fetch, or that failed, are looked at again
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 300.0


class Fetcher:
    """A thread that fetches remote shards before they are asked for.

    Each rank of a node has one. All want the same shards, and share the work: each begins at
    another place, and passes over what another process is fetching. A fetch that fails is told of
    and tried again later; meanwhile a reader that asks for the shard fetches it itself and meets
    the error there, where it can be reported.

    Args:
        near: step -> groups of (source, shard) pairs to have at hand, the most urgent group first.
        first: step at which the training begins.
        turn: number of this process on its node.
    """

    def __init__(
        self,
        sources: Sequence[Shards],
        near: Callable[[int], Sequence[Sequence[Pair]]],
        first: int = 0,
        turn: int = 0,
    ) -> None:
        self._sources, self._near, self._turn = sources, near, turn
        self._step, self._here = first, set[Pair]()
        self._pauses: dict[Pair, tuple[float, float]] = {}  # pair -> next try, pause before it
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        if any(source.remote for source in sources):
            self._thread.start()

    def at(self, step: int) -> None:
        """The training has come to this step."""
        if step != self._step:
            self._step = step
            self._wake.set()

    def close(self) -> None:
        """Stop fetching; a fetch under way ends with the process or by itself."""
        self._closed.set()
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.clear()
            if self._closed.is_set():
                return
            left = self._fetch_near(self._step)
            self._wake.wait(_LOOK_S if left else None)

    def _fetch_near(self, step: int) -> bool:
        """Fetch what is not here yet; returns whether something is left to look at again."""
        groups = self._near(step)
        wanted = {pair for group in groups for pair in group}
        self._here &= wanted
        for group in groups:
            start = self._turn % max(1, len(group))
            for pair in (*group[start:], *group[:start]):
                if self._closed.is_set():
                    return False
                if pair not in self._here:
                    self._try(pair)
        return not wanted <= self._here

    def _try(self, pair: Pair) -> None:
        due, pause = self._pauses.get(pair, (0.0, 0.0))
        if time.monotonic() < due:
            return
        source, shard = self._sources[pair[0]], pair[1]
        try:
            if source.fetch(shard):
                self._here.add(pair)
        except Exception as failed:  # whatever it is, the other shards are still wanted
            if self._closed.is_set():
                return
            pause = min(2 * pause or _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
            self._pauses[pair] = (time.monotonic() + pause, pause)
            logging.getLogger(__name__).warning(
                "%s/%s could not be fetched ahead of the training; it is tried again in %d s: %s",
                source.name, source.tars[shard], pause, failed,
            )  # fmt: skip
        else:
            self._pauses.pop(pair, None)
