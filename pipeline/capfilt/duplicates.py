"""Exact duplicates over all shards: images whose bytes an earlier image has too.

The answer must not depend on who is first to finish, so it is settled before any model runs, in
two steps over the plan. Each shard is hashed by itself (``digest_shard``, a task each); then one
pass over the digests (``find_duplicates``) keeps of equal images the first in the plan's order.

Bounded memory: the digests of a shard are sorted and start with a table, so that all shards can be
read a range of digests at a time. 129 million images are 2.6 GB of digests, read in 16 ranges.
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from cluster.storage.base import Storage
from pipeline.capfilt.filters import FilterConfig, check_sample
from pipeline.sample import Rejected, Sample

_ENTRY = np.dtype([("high", ">u8"), ("low", ">u8"), ("record", "<u4")])  # 128 bits of sha256
# The number of the first entry for each first byte of the digests, and the number of entries.
_TABLE = np.dtype("<u4")
_TABLE_BYTES = 257 * _TABLE.itemsize
_IN_MEMORY = 8_000_000  # digests compared at once: under 1 GB
_READERS = 32


def digest_shard(records: Iterable[Sample | Rejected], filters: FilterConfig) -> bytes:
    """The digests of a shard's images, sorted, each with its record's number.

    What the filters drop by its caption or columns is left out: it must not stand for a duplicate
    that they let through. What they drop by the image's own bytes they drop in all its copies.
    """
    entries = [
        (*_halves(record.image), number)
        for number, record in enumerate(records)
        if isinstance(record, Sample) and check_sample(filters, record) is None
    ]
    found = np.sort(np.array(entries, dtype=_ENTRY), order=["high", "low", "record"])
    starts = np.searchsorted(found["high"].astype(np.uint64) >> 56, np.arange(257))
    out = io.BytesIO()
    out.write(starts.astype(_TABLE).tobytes())
    out.write(found.tobytes())
    return out.getvalue()


def _halves(image: bytes) -> tuple[int, int]:
    digest = hashlib.sha256(image).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")


def find_duplicates(
    storage: Storage, names: Sequence[str], in_memory: int = _IN_MEMORY
) -> np.ndarray:
    """The records of the plan whose image an earlier record has too.

    Args:
        storage: store of the digests.
        names: names of the files that ``digest_shard`` made, in the plan's order.
        in_memory: number of digests compared at once.

    Returns:
        int64 (D, 2): (shard, record), sorted.
    """
    with ThreadPoolExecutor(_READERS) as readers:
        tables = np.stack(list(readers.map(partial(_table, storage), names)))
        total = int(tables[:, -1].sum())
        passes = 1
        while passes < 256 and passes * in_memory < total:
            passes *= 2
        width = 256 // passes
        found = [
            _repeated(list(readers.map(partial(_range, storage), names, low, high)))
            for low, high in (tables[:, [n, n + width]].T for n in range(0, 256, width))
        ]
    joined = np.concatenate(found)
    return joined[np.lexsort((joined[:, 1], joined[:, 0]))]


def _table(storage: Storage, name: str) -> np.ndarray:
    return np.frombuffer(storage.read_range(name, 0, _TABLE_BYTES), dtype=_TABLE).astype(np.int64)


def _range(storage: Storage, name: str, first: int, end: int) -> np.ndarray:
    if first == end:
        return np.zeros(0, dtype=_ENTRY)
    start, length = int(first) * _ENTRY.itemsize, int(end - first) * _ENTRY.itemsize
    return np.frombuffer(storage.read_range(name, _TABLE_BYTES + start, length), dtype=_ENTRY)


def _repeated(parts: Sequence[np.ndarray]) -> np.ndarray:
    """(shard, record) of every digest but its first, in any order."""
    sizes = [len(part) for part in parts]
    high = np.concatenate([part["high"].astype(np.uint64) for part in parts])
    if not len(high):
        return np.zeros((0, 2), dtype=np.int64)
    order = np.argsort(high, kind="stable")  # the parts are sorted: this merges them
    equal = high[order[1:]] == high[order[:-1]]
    mates = order[np.append(equal, False) | np.insert(equal, 0, False)]  # the others are alone
    low = np.concatenate([part["low"] for part in parts])[mates].astype(np.uint64)
    record = np.concatenate([part["record"] for part in parts])[mates].astype(np.int64)
    shard = np.repeat(np.arange(len(parts), dtype=np.int64), sizes)[mates]
    inner = np.lexsort((record, shard, low, high[mates]))
    one, two = inner[:-1], inner[1:]
    again = two[(high[mates[one]] == high[mates[two]]) & (low[one] == low[two])]
    return np.stack([shard[again], record[again]], axis=1)
