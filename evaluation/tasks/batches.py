"""Items cut into batches."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")


def batches(items: Sequence[_Item], size: int) -> Iterator[list[_Item]]:
    """Consecutive lists of at most ``size`` items.

    Raises:
        ValueError: ``size`` is below 1.
    """
    if size < 1:
        raise ValueError(f"batch size must be at least 1, got {size}")
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
