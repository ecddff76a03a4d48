"""Saving beside the training, on a real engine of one rank: on disk and on S3."""

import resource
import threading
from pathlib import Path

import pytest
import torch

from cluster import checkpoint
from cluster.checkpoint import writer as checkpoint_writer
from cluster.ranks import zero, zero_state
from cluster.ranks.dist import this_process
from cluster.storage.s3 import S3Config, S3Storage, _client
from tests.cluster.ranks.zero_worker import build
from tests.faulty_s3 import BUCKET, Faults, faulty_proxy, s3_server


@pytest.fixture(scope="module")
def engine():
    """ZeRO-2 in this process."""
    zero.start(60)
    yield build(2, "bf16", 0.0, 1)
    zero.stop()


def train(engine, steps: int = 1) -> None:
    for _ in range(steps):
        engine.backward(engine(torch.randn(8, 7)))
        engine.step()


def save(writer, engine, step: int, **more) -> str:
    return writer.save(
        engine, this_process(), recipe={"kind": "test"}, state={"step": step}, **more
    )


def masters(engine) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in zero_state.read(engine, zero_state.MASTER)}


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_training_goes_on_while_a_step_is_written(engine, tmp_path, monkeypatch):
    """What is published is the step that was saved, and a second save waits for the first."""
    may_write, writes = threading.Event(), []
    fill = checkpoint_writer.fill

    def slow(folder, files, recipe, state):
        writes.append(state["step"])
        assert may_write.wait(60)
        fill(folder, files, recipe, state)

    monkeypatch.setattr(checkpoint_writer, "fill", slow)
    writer = checkpoint.Writer(checkpoint.open_store(str(tmp_path)))
    train(engine)
    before = masters(engine)
    save(writer, engine, 1)  # returns at once
    train(engine, 2)
    assert not same(masters(engine), before) and not (tmp_path / "checkpoints" / "latest").exists()
    threading.Timer(0.3, may_write.set).start()
    save(writer, engine, 3, last=True)
    assert writes == [1, 3]
    first = checkpoint.find(tmp_path / "checkpoints" / "step_00000001")
    first.verify()
    assert same(first.trainable(), before) and first.state["updates"] == 1
    assert same(checkpoint.find(tmp_path).trainable(), masters(engine))


def test_keeps_the_newest_and_the_best(engine, tmp_path):
    writer = checkpoint.Writer(checkpoint.open_store(str(tmp_path)), keep=2)
    for step, metric in enumerate((3.0, 1.0, None, 2.0, float("nan")), start=1):
        save(writer, engine, step, metric=metric)
    writer.wait()
    kept = ["step_00000002", "step_00000004", "step_00000005"]
    assert names(tmp_path) == ["best", "latest", *kept]
    best = checkpoint.find(tmp_path / "checkpoints" / "best")
    assert best.step == 2 and best.state["metric"] == 1.0
    save(writer, engine, 6, metric=0.5, last=True)
    assert names(tmp_path) == ["best", "latest", "step_00000005", "step_00000006"]
    with pytest.raises(ValueError, match="no checkpoint there"):
        checkpoint.find(tmp_path / "checkpoints" / "step_00000002")


def test_a_full_disk_is_said_and_tried_again(engine, tmp_path, capsys):
    """A limit on file sizes makes the kernel refuse the write, as a full disk does."""
    writer = checkpoint.Writer(checkpoint.open_store(str(tmp_path)))
    save(writer, engine, 1, last=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        save(writer, engine, 2)
        writer.wait()
        with pytest.raises(checkpoint.NotSaved, match=r"step_00000003 could not be .*large"):
            save(writer, engine, 3, last=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["latest", "step_00000001"]
    found, damaged = checkpoint.resume(checkpoint.open_store(str(tmp_path)))
    assert found.step == 1 and not damaged
    warning = next(line for line in capsys.readouterr().out.splitlines() if "step_00000002" in line)
    assert warning.startswith("WARNING: checkpoint step_00000002 could not be written")
    assert "the last good one is" in warning and "step_00000001; training goes on" in warning
    save(writer, engine, 4, last=True)
    assert checkpoint.find(tmp_path).step == 4


def test_what_an_interrupted_write_left_is_removed(engine, tmp_path):
    writer = checkpoint.Writer(checkpoint.open_store(str(tmp_path)))
    (tmp_path / "checkpoints" / ".step_00000001.partial").mkdir(parents=True)
    save(writer, engine, 2, last=True)
    save(writer, engine, 2, last=True)  # the same step again, after a resume from an earlier one
    assert names(tmp_path) == ["latest", "step_00000002"]


@pytest.fixture
def s3(monkeypatch, tmp_path):
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    quick = S3Config(attempts=20, first_pause=0.01, longest_pause=0.1)
    monkeypatch.setattr(
        "cluster.checkpoint.store.open_storage",
        lambda url: S3Storage(BUCKET, url.partition(f"{BUCKET}/")[2], quick),
    )
    _client.cache_clear()
    with s3_server(monkeypatch) as url:
        yield url
    _client.cache_clear()


def test_s3_through_faults(s3, engine, monkeypatch):
    """Save, rotate, best, find and resume while every second request fails."""
    run = f"s3://{BUCKET}/runs/one"
    faults = Faults(error_500=0.1, slow_down=0.1, reset=0.1, truncated=0.1, lost_answer=0.1)
    with faulty_proxy(s3, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        _client.cache_clear()
        store = checkpoint.open_store(run)
        store.folder.mkdir(parents=True)
        writer = checkpoint.Writer(store, keep=1)
        for step, metric in enumerate((1.0, 2.0, 3.0), start=1):
            (store.folder / "log.jsonl").write_text(f'{{"step": {step}}}\n')
            train(engine)
            save(writer, engine, step, metric=metric, last=step == 3)
        assert store.names() == ["step_00000001", "step_00000003"]
        for path in (run, Path(run), f"{run}/checkpoints", f"{run}/checkpoints/step_00000003"):
            found = checkpoint.find(path)
            assert found.where == f"{run}/checkpoints/step_00000003"
        found.verify()
        assert same(found.trainable(), masters(engine))
        assert checkpoint.find(f"{run}/checkpoints/best").step == 1
        (store.folder / "log.jsonl").write_text("of another run")
        store.pull_logs()
        assert (store.folder / "log.jsonl").read_text() == '{"step": 3}\n'
    assert len(faults.happened) >= 4
    assert not list(store.folder.glob(".step_*"))


def test_s3_damage_and_what_was_never_committed(s3, engine, monkeypatch, capsys):
    run = f"s3://{BUCKET}/runs/two"
    store = checkpoint.open_store(run)
    storage = store._storage
    writer = checkpoint.Writer(store, keep=3)
    for step in (1, 2, 3):
        save(writer, engine, step, last=True)
    storage.remove("checkpoints/step_00000003/state.json")  # killed before the record
    assert checkpoint.find(run).step == 2
    data = storage.read("checkpoints/step_00000002/optimizer.safetensors")
    storage.replace("checkpoints/step_00000002/optimizer.safetensors", data[:-50])
    found, damaged = checkpoint.resume(store)
    (line,) = checkpoint.set_aside(store, damaged, found)
    assert found.step == 1
    assert f"{run}/checkpoints/step_00000002/optimizer.safetensors has" in line
    assert store.names() == ["step_00000001"]
    with faulty_proxy(s3, Faults(denied=1.0)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        _client.cache_clear()
        with pytest.raises(checkpoint.NotSaved, match="access denied"):
            save(writer, engine, 4, last=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    _client.cache_clear()
    assert checkpoint.find(run).step == 1
    save(writer, engine, 2, last=True)  # over what is left of the damaged one
    assert checkpoint.resume(store)[0].step == 2
    with pytest.raises(ValueError, match="no checkpoint there"):
        checkpoint.find(f"s3://{BUCKET}/runs/none")
