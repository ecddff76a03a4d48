"""Commit protocol: one winner, records last, another plan refused."""

import copy
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.storage.base import Conflict
from cluster.storage.local import LocalStorage
from cluster.storage.open import open_storage
from pipeline.shards.manifest import commit_shard, committed, compact, manifest_hash
from pipeline.shards.plan import OutputPlan, PlannedShard, open_plan

STATS = {
    "n": 3, "ok": 2, "filtered": 0, "failed": 1, "reasons": {"not_an_image": 1}, "web_won": 1,
}  # fmt: skip


def race(root: str, content: bytes, start: object, results: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    try:
        won = open_storage(root).publish("shards/x.tar", content)
    except Conflict:
        won = None
    results.put(won)  # type: ignore[attr-defined]


@pytest.mark.parametrize("same", [True, False])
def test_of_many_racers_exactly_one_creates_the_file(tmp_path: Path, same: bool):
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    racers = [
        context.Process(
            target=race,
            args=(str(tmp_path), b"x" * 10_000 if same else b"%d" % i * 5_000, start, results),
        )
        for i in range(16)
    ]
    for racer in racers:
        racer.start()
    start.set()
    outcomes = [results.get(timeout=30) for _ in racers]
    for racer in racers:
        racer.join()
    assert outcomes.count(True) == 1
    assert outcomes.count(False if same else None) == 15
    assert os.listdir(tmp_path / "shards") == ["x.tar"]


def test_records_come_last_and_are_all_that_counts(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    assert committed(str(tmp_path)) == []
    storage.publish("shards/00000001.tar", b"tar")
    storage.publish("shards/00000001.parquet", b"rows")
    assert committed(str(tmp_path)) == []
    assert commit_shard(storage, "00000001", b"tar", b"rows", {**STATS, "seconds": 1.0})
    assert not commit_shard(storage, "00000001", b"tar", b"rows", {**STATS, "seconds": 2.0})
    (commit,) = committed(str(tmp_path))
    assert (commit.name, commit.n, commit.ok, commit.reasons) == (
        "00000001", 3, 2, {"not_an_image": 1},
    )  # fmt: skip
    assert Path(commit.tar_path).read_bytes() == b"tar"
    assert json.loads(storage.read("shards/00000001_stats.json"))["seconds"] == 1.0


def test_other_bytes_are_a_conflict_that_names_both(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    commit_shard(storage, "00000000", b"tar", b"rows", STATS)
    with pytest.raises(Conflict, match=r"00000000\.tar.*sha256 90aeb.*made d9298"):
        commit_shard(storage, "00000000", b"other", b"rows", STATS)
    with pytest.raises(Conflict, match="stats"):
        commit_shard(storage, "00000000", b"tar", b"rows", {**STATS, "ok": 1})
    assert storage.read("shards/00000000.tar") == b"tar"


@pytest.mark.parametrize("lost", [("tar",), ("tar", "parquet")])
def test_what_a_lost_attempt_left_does_not_stop_one_with_other_bytes(tmp_path: Path, lost: tuple):
    storage = LocalStorage(tmp_path)
    for kind in lost:
        storage.publish(f"shards/00000000.{kind}", b"lost " + kind.encode())
    for _ in range(2):  # the second attempt is a worker's that was thought to be lost
        commit_shard(storage, "00000000", b"tar", b"rows", STATS)
    (commit,) = committed(str(tmp_path))
    assert Path(commit.tar_path).read_bytes() == storage.read(commit.tar) == b"tar"
    assert Path(commit.parquet_path).read_bytes() == storage.read(commit.parquet) == b"rows"
    assert commit.tar != "shards/00000000.tar"
    compact(storage, [commit])
    sizes = json.loads((tmp_path / "sizes.json").read_text())
    assert sizes == {commit.tar.removeprefix("shards/"): 2}


def test_hash_is_of_the_content_and_not_of_the_place(tmp_path: Path):
    for name in ("a", "b"):
        commit_shard(LocalStorage(tmp_path / name), "00000000", b"tar", b"rows", STATS)
    a, b = committed(str(tmp_path / "a")), committed(str(tmp_path / "b"))
    assert manifest_hash(a) == manifest_hash(b) != manifest_hash([])
    compact(LocalStorage(tmp_path / "a"), a)
    assert json.loads((tmp_path / "a" / "sizes.json").read_text()) == {"00000000.tar": 2}


def test_another_plan_is_refused_with_the_difference(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    inputs = (PlannedShard("00000000", "a.tar", 10, "e"),)
    plan = OutputPlan({"recipe": {"seed": 1}}, inputs)
    assert open_plan(storage, plan) == open_plan(storage, plan)
    with pytest.raises(ValueError, match=r"fingerprint\.recipe\.seed: 1 then, 2 now"):
        open_plan(storage, OutputPlan({"recipe": {"seed": 2}}, inputs))
    with pytest.raises(ValueError, match="inputs: 1 then, 0 now"):
        open_plan(storage, OutputPlan({"recipe": {"seed": 1}}, ()))


def test_a_conflict_travels_between_processes():
    made = Conflict.between("shards/x.tar", b"there", b"new")
    found = copy.deepcopy(made)  # by the protocol that pickle uses
    assert str(found) == str(made) and found.existing == b"there"


def test_leftovers_of_the_dead_are_swept_and_of_the_living_kept(tmp_path: Path):
    script = (
        "import os, sys; from pathlib import Path; from cluster.storage.local import LocalStorage\n"
        "LocalStorage(Path(sys.argv[1]))._write_temporary(Path(sys.argv[1]) / 's' / 'x', b'1')"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    storage = LocalStorage(tmp_path)
    mine = storage._write_temporary(tmp_path / "s" / "y", b"2")
    assert len(os.listdir(tmp_path / "s")) == 2 and storage.entries("s") == []
    storage.sweep()
    assert os.listdir(tmp_path / "s") == [mine.name]


@pytest.mark.parametrize("url", ["s3:///x", "pipe:cat x", "gs://b/c", ""])
def test_other_schemes_get_one_clear_error(url: str):
    with pytest.raises(ValueError, match="storage"):
        open_storage(url)


def test_names_cannot_leave_the_root(tmp_path: Path):
    for name in ("../x", "/etc/passwd", "a/../../b", ""):
        with pytest.raises(ValueError, match="storage name"):
            LocalStorage(tmp_path).publish(name, b"")


def test_a_broken_record_is_named(tmp_path: Path):
    LocalStorage(tmp_path).publish("shards/00000000_stats.json", b"{}")
    with pytest.raises(ValueError, match=r"00000000_stats\.json"):
        committed(str(tmp_path))
