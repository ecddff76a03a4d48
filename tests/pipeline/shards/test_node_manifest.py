"""Commit records on S3 are read once a node."""

from collections import Counter
from pathlib import Path

import pytest

from cluster.storage.cache import NodeCache
from cluster.storage.open import open_storage
from cluster.storage.s3 import S3Storage, _client
from pipeline.shards.manifest import commit_shard, committed
from pipeline.shards.node_manifest import committed_once
from tests.faulty_s3 import BUCKET, s3_server

URL = f"s3://{BUCKET}/out"
COUNTS = {"n": 3, "ok": 2, "filtered": 1, "failed": 0}
STATS = {**COUNTS, "reasons": {"small": 1}, "web_won": 1, "seconds": {"caption": 1.5}}


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch):
    """An output of five shards on a server."""
    _client.cache_clear()
    with s3_server(monkeypatch):
        found = open_storage(URL)
        for number in range(5):
            commit_shard(found, f"{number:08d}", b"tar %d" % number, b"rows", STATS)
        yield found
    _client.cache_clear()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each object was read."""
    names: Counter[str] = Counter()
    plain = S3Storage.read

    def counted(self: S3Storage, name: str) -> bytes:
        names[name] += 1
        return plain(self, name)

    monkeypatch.setattr(S3Storage, "read", counted)
    return names


def test_one_process_of_a_node_reads_each_record(storage, read, tmp_path: Path):
    wanted = committed(URL)
    read.clear()
    cache = NodeCache(tmp_path / "node")
    assert committed_once(storage, cache) == wanted
    records = {name for name in read if name.endswith("_stats.json")}
    assert len(records) == 5 and max(read.values()) == 1
    read.clear()
    assert committed_once(storage, cache) == wanted and not read
    assert committed_once(storage, NodeCache(tmp_path / "other")) == wanted and len(read) == 5


def test_a_record_that_is_made_again_is_read_again(storage, tmp_path: Path):
    cache = NodeCache(tmp_path / "node")
    before = committed_once(storage, cache)
    for kind in ("_stats.json", ".tar", ".parquet"):
        storage.remove(f"shards/00000002{kind}")
    commit_shard(storage, "00000002", b"tar X", b"rows", STATS)  # a record of the same size
    commit_shard(storage, "00000005", b"tar 5", b"rows", STATS)
    now = committed(URL)
    assert len(now) == 6 and now[2].tar_sha256 != before[2].tar_sha256
    assert committed_once(storage, cache) == now


def test_nothing_committed_is_an_empty_list(storage, tmp_path: Path):
    assert committed_once(open_storage(f"s3://{BUCKET}/none"), NodeCache(tmp_path)) == []
