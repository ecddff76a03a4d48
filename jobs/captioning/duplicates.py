"""Exact duplicates over all shards, found before any model runs.

The comparison itself is in ``pipeline.capfilt.duplicates``.

Both files are committed like shards, so a run that was interrupted goes on, and any number of runs
on one output agree: ``hashes/NAME.bin`` for each input shard, then ``duplicates.bin`` for all.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from tqdm import tqdm

from cluster.ray.map import map_tasks
from cluster.ray.session import RayConfig
from cluster.storage.base import Storage, absolute_url
from cluster.storage.open import open_storage
from jobs.captioning.work import Work
from pipeline.capfilt.duplicates import digest_shard, find_duplicates
from pipeline.capfilt.filters import FilterConfig
from pipeline.sources.open import Source

_FOUND, _HASHES = "duplicates.bin", "hashes"


def mark_duplicates(
    work: Sequence[Work], source: Source, filters: FilterConfig, storage: Storage, ray: RayConfig
) -> list[Work]:
    """The same work, knowing which of its records are duplicates; needs a connected Ray.

    Args:
        work: every shard of the plan, in its order.
    """
    if not storage.exists(_FOUND):
        _hash_all(work, source, filters, storage, ray)
        found = find_duplicates(storage, [f"{_HASHES}/{item.name}.bin" for item in work])
        storage.publish(_FOUND, found.astype("<u4").tobytes())
    shard, record = np.frombuffer(storage.read(_FOUND), dtype="<u4").reshape(-1, 2).T
    cuts = np.searchsorted(shard, np.arange(len(work) + 1))
    return [
        replace(item, duplicates=record[first:end].tobytes())
        for item, first, end in zip(work, cuts[:-1], cuts[1:], strict=True)
    ]


def _hash_all(
    work: Sequence[Work], source: Source, filters: FilterConfig, storage: Storage, ray: RayConfig
) -> None:
    there = {entry.name for entry in storage.entries(_HASHES)}
    todo = [item for item in work if f"{_HASHES}/{item.name}.bin" not in there]
    hash_one = partial(_hash, source.reader(), filters, absolute_url(storage.url))
    with tqdm(total=len(work), initial=len(work) - len(todo), unit="shard", desc="hash") as bar:
        map_tasks(todo, hash_one, ray, lambda item, _: bar.update(1))


def _hash(source: Source, filters: FilterConfig, output: str, item: Work) -> None:
    digests = digest_shard(source.read(item.shard), filters)
    open_storage(output).publish(f"{_HASHES}/{item.name}.bin", digests)
