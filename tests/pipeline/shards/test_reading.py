"""Shards on S3 give the batches that the same shards on disk give, through the node's cache."""

import shutil
from pathlib import Path

import pytest

from cluster.storage.cache import Changed, NodeCache
from cluster.storage.open import open_storage
from cluster.storage.s3 import S3Storage, _client
from pipeline.loading.loader import LoaderConfig
from pipeline.shards.reading import open_shards
from tests.faulty_s3 import BUCKET, Faults, faulty_proxy, s3_server
from tests.pipeline.loading.test_loader import batches, equal
from tests.tiny_training import capfilt_output


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A CapFilt output, and its URL on a server; `made`, `foreign` are the two kinds."""
    _client.cache_clear()
    made, foreign = capfilt_output(tmp_path / "made"), tmp_path / "foreign"
    foreign.mkdir()
    for tar in (made / "shards").glob("*.tar"):
        shutil.copy(tar, foreign)
    with s3_server(monkeypatch) as server:
        for folder in (made, foreign):
            store = open_storage(f"s3://{BUCKET}/{folder.name}")
            for path in folder.rglob("*"):
                if path.is_file():
                    store.replace(str(path.relative_to(folder)), path.read_bytes())
        yield server
    _client.cache_clear()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the objects that were downloaded, in order."""
    names: list[str] = []
    download = S3Storage.download

    def counted(self: S3Storage, name: str, path: Path, streams: int = 1) -> None:
        names.append(name)
        download(self, name, path, streams)

    monkeypatch.setattr(S3Storage, "download", counted)
    return names


@pytest.mark.parametrize("kind", ["made", "foreign"])
def test_the_same_batches_and_every_object_once(kind, remote, tmp_path, asked, monkeypatch):
    faults = Faults(error_500=0.1, reset=0.1, truncated=0.1)
    with faulty_proxy(remote, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        _client.cache_clear()
        config = LoaderConfig(cache=str(tmp_path / "cache"), workers=2 if kind == "made" else 0)
        found = batches(f"s3://{BUCKET}/{kind}", range(8), config=config)
        again = batches(f"s3://{BUCKET}/{kind}", range(8), config=config)
    for one, two, three in zip(batches(tmp_path / kind, range(8)), found, again, strict=True):
        equal(one, two)
        equal(one, three)
    mine = [name for name in asked if name.endswith(".tar")]  # by this process
    assert len(mine) == len(set(mine)) == 3
    assert faults.happened["truncated"] > 0


def test_an_object_that_was_changed_is_not_trained_on(remote, tmp_path):
    store = open_storage(f"s3://{BUCKET}/made")
    name = "shards/00000001.tar"
    store.replace(name, store.read(name)[:-1] + b"x")
    with pytest.raises(Changed, match=r"00000001\.tar has .* its record says"):
        batches(f"s3://{BUCKET}/made", range(8), config=LoaderConfig(cache=str(tmp_path / "c")))


def test_missing_data_is_named(remote):
    with pytest.raises(ValueError, match="neither commit records nor"):
        open_shards(f"s3://{BUCKET}/nothing")


def test_foreign_tars_are_walked_once(tmp_path, monkeypatch):
    made, foreign = capfilt_output(tmp_path / "made"), tmp_path / "foreign"
    foreign.mkdir()
    for tar in (made / "shards").glob("*.tar"):
        shutil.copy(tar, foreign)
    cache = NodeCache(tmp_path / "cache")
    first = open_shards(str(foreign), cache)
    monkeypatch.setattr(
        "pipeline.shards.reading.index_tar", lambda path: pytest.fail(f"walked {path}")
    )
    second = open_shards(str(foreign), cache)
    assert first.sizes == second.sizes and first.key(0, 3) == second.key(0, 3)
    assert (first.spans(1) == second.spans(1)).all() and first.digest == second.digest
