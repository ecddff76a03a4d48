"""Square images of one size that arrive one by one, in one array that is never held twice."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

_STEP = 16


class Squares:
    """A growing uint8 array N3SS.

    It grows in place: the operating system moves an array of this size by its page table, without
    a copy. A list of images that is stacked at the end takes twice the memory.

    Args:
        size: side of the squares in pixels.

    Attributes:
        count: number of images so far.
    """

    def __init__(self, size: int) -> None:
        self._rows = np.empty((0, 3, size, size), np.uint8)
        self.count = 0

    def add(self, image: Tensor) -> None:
        """Append a uint8 image 3SS."""
        if self.count == len(self._rows):
            self._make(self.count + max(_STEP, self.count // _STEP))
        self._rows[self.count] = image.numpy()
        self.count += 1

    def take(self, order: Sequence[int]) -> np.ndarray:
        """The images in another order, N3SS; this object is empty afterwards.

        Args:
            order: number of the image that comes first, second, and so on; each occurs once.
        """
        self._make(self.count)
        rows, self._rows, self.count = self._rows, self._rows[:0].copy(), 0
        _permute(rows, order)
        return rows

    def _make(self, count: int) -> None:
        self._rows.resize((count, *self._rows.shape[1:]), refcheck=False)


def _permute(rows: np.ndarray, order: Sequence[int]) -> None:
    """Put ``rows[order[i]]`` at place i, in place: along each cycle, with one row set aside."""
    placed = [place == source for place, source in enumerate(order)]
    for start in range(len(order)):
        if placed[start]:
            continue
        aside, place = rows[start].copy(), start
        while order[place] != start:
            rows[place] = rows[order[place]]
            placed[place] = True
            place = order[place]
        rows[place] = aside
        placed[place] = True
