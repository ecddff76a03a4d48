"""S3 against a real server (moto): create-only publishing, races, faults, and clear refusals."""

import random
import threading

import boto3
import pytest

from cluster.storage.base import Conflict, Unreachable
from cluster.storage.open import open_storage
from cluster.storage.ranges import piece_bounds
from cluster.storage.s3 import S3Config, S3Storage, _client
from tests.faulty_s3 import BUCKET, Faults, faulty_proxy, s3_server

QUICK = S3Config(first_pause=0.01, longest_pause=0.1, timeout=2.0)


@pytest.fixture
def server(monkeypatch):
    _client.cache_clear()
    with s3_server(monkeypatch) as url:
        yield url
    _client.cache_clear()


def storage(**changes) -> S3Storage:
    return S3Storage(BUCKET, "a/b", S3Config(**{**QUICK.__dict__, **changes}))


def test_a_name_is_created_once_and_never_changes(server):
    store = storage()
    assert not store.exists("shards/x.tar")
    assert store.publish("shards/x.tar", b"first")
    assert not store.publish("shards/x.tar", b"first")
    with pytest.raises(Conflict, match="already committed") as conflict:
        store.publish("shards/x.tar", b"other")
    assert conflict.value.existing == b"first"
    assert store.exists("shards/x.tar") and store.read("shards/x.tar") == b"first"
    store.replace("gallery.html", b"one")
    store.replace("gallery.html", b"two")
    assert store.read("gallery.html") == b"two"


def test_files_are_uploaded_in_parts_and_may_be_rewritten(server, tmp_path):
    store, path = storage(part=5 << 20), tmp_path / "x"
    for data in (b"small", bytes(range(256)) * (6 << 12), b""):
        path.write_bytes(data)
        store.upload("x", path)
        assert store.read("x") == data
    store.remove("x")
    store.remove("x")
    assert not store.exists("x")


def test_urls_listing_ranges_and_copies(server, tmp_path):
    store = open_storage(f"s3://{BUCKET}/a/b/")
    assert store.url == f"s3://{BUCKET}/a/b"
    for name in ("plan.json", "shards/1.tar", "shards/0.tar", "shards/deep/2.tar"):
        store.replace(name, name.encode() * 3)
    open_storage(f"s3://{BUCKET}/a/bc").replace("x", b"a neighbour's")
    assert [e.name for e in store.entries("shards")] == ["shards/0.tar", "shards/1.tar"]
    assert [e.name for e in store.entries()] == ["plan.json"]
    deep = store.entries(deep=True)
    assert [e.name for e in deep][-1] == "shards/deep/2.tar" and len(deep) == 4
    assert deep[0].size == 27 and deep[0].etag
    assert store.entries("nothing") == []
    assert store.read_range("plan.json", 4, 5) == b".json"
    assert store.read_range("plan.json", 25, 50) == b"on"
    assert store.read_range("plan.json", 50, 5) == b""
    with store.local_copy("shards/0.tar") as path:
        assert path.read_bytes() == b"shards/0.tar" * 3 and path.suffix == ".tar"
    assert not path.exists()
    for read in (store.read, lambda name: store.local_copy(name).__enter__()):
        with pytest.raises(FileNotFoundError, match="no such object"):
            read("missing")
    with pytest.raises(ValueError, match=r"'\.\.'"):
        store.read("../other")


@pytest.mark.parametrize("size", [0, 1000, 1 << 20, (1 << 20) + 1, (5 << 20) + 77])
def test_parallel_reads_bring_the_same_bytes(server, tmp_path, size):
    """A third of the requests fails; what has come of a piece is not asked for again."""
    data = random.Random(0).randbytes(size)
    storage().replace("x", data)
    faults = Faults(error_500=0.1, reset=0.1, truncated=0.15)
    with faulty_proxy(server, faults) as url:
        store = storage(attempts=20)
        client = boto3.client("s3", endpoint_url=url)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cluster.storage.s3._client", lambda *_: client)
            store.download("x", tmp_path / "x", streams=4)
    assert (tmp_path / "x").read_bytes() == data


def test_parallel_reads_are_of_one_version(server, tmp_path):
    store = storage()
    store.replace("x", b"a" * (4 << 20))
    asked = store._client.get_object
    ranges = []

    def get_object(**request):
        ranges.append(request["Range"])
        if len(ranges) == 2:
            store.replace("x", b"b" * (4 << 20))
        return asked(**request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store._client, "get_object", get_object)
        with pytest.raises(ValueError, match="PreconditionFailed"):
            store.download("x", tmp_path / "x", streams=3)
    with pytest.raises(FileNotFoundError, match="no such object"):
        store.download("missing", tmp_path / "y", streams=3)


@pytest.mark.parametrize("size", [0, 5, 1 << 20, (1 << 20) + 1, 3 << 20, 600 << 20])
def test_the_pieces_of_an_object_are_all_of_it_once(size):
    bounds = piece_bounds(size, 8)
    starts, stops = [1 << 20, *(stop for _, stop in bounds)], [*(start for start, _ in bounds)]
    assert starts[:-1] == stops and starts[-1] == max(size, 1 << 20) and len(bounds) <= 8
    lengths = [stop - start for start, stop in bounds]
    assert not lengths or (min(lengths) > 0 and max(lengths) - min(lengths) <= 1)


@pytest.mark.slow
def test_more_than_a_page_of_objects_is_listed(server):
    store = storage()
    for number in range(1005):
        store.replace(f"shards/{number:05d}", b"")
    assert [e.name for e in store.entries("shards")] == [f"shards/{n:05d}" for n in range(1005)]


def test_of_racing_writers_one_wins(server):
    store, wins, conflicts = storage(), [], []

    def write(number: int) -> None:
        try:
            wins.append(store.publish("plan.json", b"writer %d" % number))
        except Conflict:
            conflicts.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wins == [True] and len(conflicts) == 15


def test_large_objects_go_in_parts_and_are_create_only_too(server):
    store = storage(multipart=6 << 20, part=5 << 20)
    data = bytes(range(256)) * (52 << 10)  # 13 MiB
    assert store.publish("shards/big.tar", data)
    assert store.read("shards/big.tar") == data
    assert not store.publish("shards/big.tar", data)
    with pytest.raises(Conflict):
        store.publish("shards/big.tar", data[:-1] + b"x")
    assert not store._client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


@pytest.mark.slow
def test_passing_faults_change_nothing(server, monkeypatch):
    """A third of all requests fails in some way; every byte arrives, and nothing twice."""
    faults = Faults(error_500=0.08, slow_down=0.07, reset=0.07, truncated=0.1, lost_answer=0.07)
    with faulty_proxy(server, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        _client.cache_clear()
        store = storage(attempts=20)
        for number in range(40):
            data = bytes([number]) * (1 + 300_000 * (number % 8))
            name = f"shards/{number:02d}"
            store.publish(name, data)
            assert not store.publish(name, data)
            assert store.read(name) == data
            with store.local_copy(name) as path:
                assert path.read_bytes() == data
            assert store.read_range(name, 1, 9) == data[1:10]
        assert len(store.entries("shards")) == 40
    assert set(faults.happened) == {
        "error_500", "slow_down", "reset", "truncated", "lost_answer"
    }  # fmt: skip


def test_a_stall_is_given_up_and_tried_again(server, monkeypatch):
    faults = Faults(stalled_first=2, stall_seconds=30.0)
    with faulty_proxy(server, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        _client.cache_clear()
        store = storage(timeout=2.0, attempts=40)
        store.publish("x", b"1")
        assert store.read("x") == b"1" and faults.happened["stall"] == 2


def test_what_cannot_work_is_said_at_once(server, monkeypatch):
    with pytest.raises(ValueError, match="no bucket 'nowhere'; create it"):
        S3Storage("nowhere", "", QUICK).publish("x", b"")
    with pytest.raises(ValueError, match="give s3://BUCKET/PREFIX"):
        open_storage("s3:///x")
    with faulty_proxy(server, Faults(denied=1.0)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        _client.cache_clear()
        with pytest.raises(ValueError, match=r"s3://pairs/a/b/x: access denied"):
            storage().read("x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    _client.cache_clear()
    with pytest.raises(Unreachable, match=r"in 3 attempts.*check the network"):
        storage(attempts=3).read("x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    _client.cache_clear()
    with pytest.raises(ValueError, match="set AWS_ACCESS_KEY_ID"):
        storage().read("x")
