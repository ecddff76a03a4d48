"""The sample order with steps of like lengths: less padding where texts differ much in length.

The samples of ``window`` steps are sorted by length, text without an image apart from the rest, and
cut into steps again, whose order is shuffled. Like ``Schedule``'s, the order is a pure function of
(seed, step), whatever the ranks and workers. LLaVA-1.5 trains on such steps.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pipeline.loading.schedule import SampleRef, Schedule, SourceSizes, permutation


class GroupedSchedule(Schedule):
    """A ``Schedule`` whose steps hold samples of like length.

    Args:
        lengths: for each source, the lengths of each shard's samples; negative for text without an
            image.
        window: steps whose samples are sorted.
    """

    def __init__(
        self,
        sources: Sequence[SourceSizes],
        seed: int,
        global_batch: int,
        lengths: Sequence[Sequence[np.ndarray]],
        window: int,
    ) -> None:
        self._lengths, self._steps = lengths, window
        self._window = lru_cache(maxsize=2)(self._make_window)
        super().__init__(sources, seed, global_batch)

    def _make_step(self, step: int) -> tuple[SampleRef, ...]:
        window, place = divmod(step, self._steps)
        return self._window(window)[place]

    def _make_window(self, window: int) -> list[tuple[SampleRef, ...]]:
        first = window * self._steps
        plain = [super(GroupedSchedule, self)._make_step(first + n) for n in range(self._steps)]
        # Equal lengths stay in the shuffled order that they come in.
        refs = sorted((ref for step in plain for ref in step), key=self._length)
        size = self.global_batch
        steps = []
        for number in range(self._steps):
            batch = refs[number * size :][:size]
            order = permutation(size, "grouped", self.seed, first + number)
            steps.append(tuple(batch[place] for place in order.tolist()))
        shuffled = permutation(self._steps, "window", self.seed, window)
        return [steps[place] for place in shuffled.tolist()]

    def _drawn_together(self, first: int, last: int) -> tuple[int, int]:
        return first - first % self._steps, last + -last % self._steps

    def _length(self, ref: SampleRef) -> int:
        return int(self._lengths[ref.source][ref.shard][ref.index])
