"""The interface of all sources, their input shards, and the entries of a list of images."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.sample import Rejected, Sample


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One image of a list, with everything that the list says about it.

    Attributes:
        file: name of the image file, relative to the image folder.
        captions: its captions that can be used.
        reason: why it cannot become a sample; "" where it can.
        meta: other fields of its line or record.
        key: name in the output, unique in the source.
    """

    file: str
    captions: tuple[str, ...]
    reason: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    key: str = ""


@dataclass(frozen=True, slots=True)
class InputShard:
    """A unit of work, small enough to be sent between processes.

    Attributes:
        name: name in the source: that of a tar, or ``part-00000``.
        size: bytes of a tar, or number of listed images.
        etag: mark of its content, which changes when the content does.
        items: the listed images; empty for a tar.
    """

    name: str
    size: int
    etag: str
    items: tuple[ListedImage, ...] = ()


class Source(Protocol):
    """A set of input shards that can be read in any order, in any process.

    ``reader()`` is the same source without its list of shards, to be sent between processes;
    ``read(shard)`` yields a sample or a rejection for every input of a shard.
    """

    @property
    def name(self) -> str: ...
    def shards(self) -> list[InputShard]: ...
    def reader(self) -> "Source": ...
    def read(self, shard: InputShard) -> Iterator[Sample | Rejected]: ...
