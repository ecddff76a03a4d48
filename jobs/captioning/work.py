"""An output shard to make: what CapFilt's driver hands to the workers."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.sample import Rejected, Sample
from pipeline.shards.parquet import SampleRow
from pipeline.sources.open import InputShard, Source

RETRY = "-retry"


@dataclass(frozen=True, slots=True)
class Work:
    """An output shard to make of an input shard, or of some of its records.

    Attributes:
        name: name of the output shard.
        shard: input shard.
        first, end: range of records to take; None is the end of the shard.
        killers: numbers of records that kill the worker that touches them: they become rows only.
        again: rows of a committed shard to try again; empty for a shard's first time.
        duplicates: numbers of records whose image another record has, packed in 32 bits each.
    """

    name: str
    shard: InputShard
    first: int = 0
    end: int | None = None
    killers: frozenset[int] = frozenset()
    again: tuple[SampleRow, ...] = ()
    duplicates: bytes = b""

    def __str__(self) -> str:
        return f"shard {self.name} ({self.shard.name})"

    def only(self, first: int, end: int) -> "Work":
        """These records alone."""
        return replace(self, first=first, end=end)

    def without(self, killers: frozenset[int]) -> "Work":
        """The same work with these records quarantined."""
        return replace(self, killers=self.killers | killers)

    def records(self, source: Source) -> Iterator[Sample | Rejected]:
        """The records of this work, the quarantined ones with their reason."""
        wanted = {row.uid for row in self.again}
        copies = frozenset(np.frombuffer(self.duplicates, dtype="<u4").tolist())
        for number, record in enumerate(source.read(self.shard)):
            if number < self.first or (self.end is not None and number >= self.end):
                continue
            if self.again:
                if record.uid not in wanted:
                    continue
                wanted.remove(record.uid)  # a second one of the name is a duplicate, not this one
            if isinstance(record, Sample) and number in self.killers:
                yield _rejected(record, "kills_worker", "failed")
            elif isinstance(record, Sample) and number in copies:
                yield _rejected(record, "duplicate_image", "filtered")
            else:
                yield record

    def about(self) -> dict[str, Any]:
        """The fields of the commit record that describe a retry, so that no input counts twice."""
        if not self.again:
            return {}
        return {
            "retry_of": self.name.partition(RETRY)[0],
            "retried": dict(Counter(row.reason for row in self.again)),
            "retried_status": dict(Counter(row.status for row in self.again)),
        }


def _rejected(sample: Sample, reason: str, status: str) -> Rejected:
    where = (sample.uid, sample.key, sample.source, sample.shard)
    sha256 = hashlib.sha256(sample.image).hexdigest()
    return Rejected(*where, reason, sample.caption, status, sha256)
