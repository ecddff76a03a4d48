"""Passes of a task cut into chunks that are a function of the data alone.

Items of one image stay together, so that it is encoded once for all that is asked about it. Batches
are made inside a chunk; so an answer depends neither on the number of workers nor on what was left
to do after a restart (beams in bf16 differ by the batch that they are in).
"""

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.tasks.base import Answers, Pass


@dataclass(frozen=True)
class Chunk:
    """Some items of a pass, which are answered and written together.

    Attributes:
        task, split: name of the task, and the split of its data.
        look: name of the pass.
        number: number of the chunk in its pass, from 0.
        items: items of the chunk.
        places: place of each item in its pass.
    """

    task: str
    split: str
    look: str
    number: int
    items: tuple[Any, ...]
    places: tuple[int, ...]

    def __str__(self) -> str:
        return f"chunk {self.name}"

    @property
    def name(self) -> str:
        """Name of the chunk's file, without suffix."""
        return f"{self.task}_{self.split}/{self.look or 'answers'}-{self.number:05d}"

    @property
    def digest(self) -> str:
        """sha256 of the items: ids, texts and file names, not the folders that they lie in."""
        return _digest(self.items)


def cut(task: str, split: str, one: Pass, size: int) -> list[Chunk]:
    """The chunks of a pass.

    Args:
        size: number of items of a chunk, at least; the items of one image are not parted.

    Raises:
        ValueError: the size is below 1.
    """
    size = one.chunk or size
    if size < 1:
        raise ValueError(f"a chunk must have at least 1 item, got {size}")
    grouped: dict[Hashable, list[int]] = {}
    for place in range(len(one.items)):
        grouped.setdefault(one.groups[place] if one.groups else place, []).append(place)
    chunks: list[list[int]] = []
    for places in grouped.values():
        if not chunks or len(chunks[-1]) >= size:
            chunks.append([])
        chunks[-1] += places
    return [
        Chunk(task, split, one.name, number, tuple(one.items[p] for p in places), tuple(places))
        for number, places in enumerate(chunks)
    ]


def in_order(one: Pass, chunks: Sequence[Chunk], answers: Sequence[Answers]) -> list[Any]:
    """The rows of all chunks in the order of the pass; or the arrays of each chunk, as they are."""
    if any(isinstance(found, dict) for found in answers):
        return list(answers)
    rows: list[Any] = [None] * len(one.items)
    for chunk, found in zip(chunks, answers, strict=True):
        for place, row in zip(chunk.places, found, strict=True):
            rows[place] = row
    return rows


def digest_of(passes: Iterable[Pass]) -> str:
    """sha256 of all items of some passes: ids, texts and file names."""
    return _digest(item for one in passes for item in one.items)


def _digest(items: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(_told(item).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _told(item: Any) -> str:
    """An item as text that is the same on every machine."""
    told = getattr(item, "told", None)
    return told() if told is not None else str(item)
