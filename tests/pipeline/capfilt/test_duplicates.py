"""Duplicates are a function of the plan: as counted by hand, whatever the memory."""

import random
from pathlib import Path

import numpy as np
import pytest

from cluster.storage.open import open_storage
from pipeline.capfilt import duplicates
from pipeline.capfilt.duplicates import digest_shard, find_duplicates
from pipeline.capfilt.filters import FilterConfig
from pipeline.sample import Rejected, Sample

FILTERS = FilterConfig(max_caption=20)


def sample(image: bytes, caption: str = "web") -> Sample:
    return Sample("uid", "key", "s", "shard", image, caption, (caption,))


def publish(folder: Path, shards: list[list[Sample | Rejected]]) -> list[str]:
    storage = open_storage(str(folder))
    names = [f"hashes/{number}.bin" for number in range(len(shards))]
    for name, records in zip(names, shards, strict=True):
        storage.publish(name, digest_shard(records, FILTERS))
    return names


def test_the_first_that_its_caption_lets_through_stays(tmp_path: Path):
    lost = Rejected("uid", "key", "s", "shard", "missing_file")
    shards = [
        [sample(b"a"), lost, sample(b"b", "x" * 21), sample(b"a")],
        [],
        [sample(b"b"), sample(b"c"), sample(b"a"), sample(b"b")],
    ]
    names = publish(tmp_path, shards)
    found = find_duplicates(open_storage(str(tmp_path)), names)
    assert found.tolist() == [[0, 3], [2, 2], [2, 3]]


@pytest.mark.parametrize("in_memory", [1, 50, 1_000_000])
def test_any_memory_finds_the_same(tmp_path: Path, in_memory: int):
    chance = random.Random(0)
    images = [[chance.randbytes(1) for _ in range(chance.randrange(60))] for _ in range(12)]
    names = publish(tmp_path, [[sample(image) for image in shard] for shard in images])
    found = find_duplicates(open_storage(str(tmp_path)), names, in_memory)
    seen: set[bytes] = set()
    expected = []
    for shard, row in enumerate(images):
        for place, image in enumerate(row):
            if image in seen:
                expected.append([shard, place])
            seen.add(image)
    assert found.tolist() == expected and len(expected) > 100


def test_half_a_digest_in_common_is_no_duplicate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """64 of the 128 bits may meet by chance among 129 million."""
    halves = {b"a": (7, 1), b"b": (7, 2), b"c": (7, 1), b"d": (8, 1)}
    monkeypatch.setattr(duplicates, "_halves", halves.__getitem__)
    names = publish(tmp_path, [[sample(b"b"), sample(b"a")], [sample(b"d"), sample(b"c")]])
    assert find_duplicates(open_storage(str(tmp_path)), names).tolist() == [[1, 1]]


def test_a_shard_of_nothing_and_a_plan_of_nothing_new(tmp_path: Path):
    names = publish(tmp_path, [[], [sample(b"a")]])
    found = find_duplicates(open_storage(str(tmp_path)), names)
    assert found.shape == (0, 2) and found.dtype == np.int64
