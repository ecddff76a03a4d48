"""What all sources share: input shards, listed items, and which names and texts are usable."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.sample import Rejected, Sample


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One input of a listed source: the file, and what its list says about it.

    ``key`` is its name in the output, unique in the source.
    """

    file: str
    captions: tuple[str, ...]
    reason: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    key: str = ""


@dataclass(frozen=True, slots=True)
class InputShard:
    """A unit of work. ``etag`` changes when its content does; small enough to send around."""

    name: str
    size: int
    etag: str
    items: tuple[ListedImage, ...] = ()


class Source(Protocol):
    """A set of input shards that can be read in any order, in any process."""

    @property
    def name(self) -> str: ...
    def shards(self) -> list[InputShard]: ...
    def reader(self) -> "Source": ...
    def read(self, shard: InputShard) -> Iterator[Sample | Rejected]: ...
