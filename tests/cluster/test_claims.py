"""Claims: one of many processes has the work, and a dead one loses it."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import claims
from cluster.checkpoint import pins
from cluster.checkpoint.store import LocalStore, rotate
from cluster.storage.local import LocalStorage

ROOT = Path(__file__).parents[2]


def test_of_many_at_once_one_has_the_work(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: claims.take(store, "job"), range(8)))
    assert sorted(taken) == [""] * 7 + ["job/claim-0001"]
    assert claims.take(store, "other") == "other/claim-0001"


def test_a_dead_process_of_this_machine_loses_its_work_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cluster import claims; "
        "from cluster.storage.local import LocalStorage; "
        "print(claims.take(LocalStorage(Path(sys.argv[1])), 'job'), flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert owner.stdout is not None and owner.stdout.readline().strip() == "job/claim-0001"
    store = LocalStorage(tmp_path)
    assert claims.take(store, "job") == ""
    owner.kill()
    owner.wait()
    assert claims.take(store, "job") == "job/claim-0002"
    assert claims.take(store, "job") == ""


def test_another_machines_claim_lasts_as_long_as_its_signs_of_life(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path)
    foreign = {"host": "elsewhere", "pid": 1, "started": "1", "at": time.time() - 1000}
    store.publish("job/claim-0001.json", json.dumps(foreign).encode())
    claims.mark(store, "job/claim-0001")
    assert claims.take(store, "job") == ""
    old = json.dumps({"at": time.time() - 901}).encode()
    store.replace("job/claim-0001.beat", old)
    assert claims.take(store, "job") == "job/claim-0002"


def test_signs_of_life_are_written_while_the_work_lasts(tmp_path: Path) -> None:
    store, names = LocalStorage(tmp_path), ["a"]
    with claims.alive(store, names, period=0.01):
        names.append("b")
        deadline = time.monotonic() + 20
        while claims.age(store, "b") == float("inf"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert claims.age(store, "a") < 20
    assert claims.age(store, "c") == float("inf")


@pytest.fixture
def run(tmp_path: Path) -> LocalStore:
    for step in (1, 2, 3):
        (tmp_path / f"checkpoints/step_{step:08d}").mkdir(parents=True)
    return LocalStore(tmp_path)


def test_a_pinned_checkpoint_is_not_removed(run: LocalStore) -> None:
    name = pins.reading("step_00000001", "nightly")
    claims.mark(run.files, name)
    rotate(run, keep=1)
    assert run.names() == ["step_00000001", "step_00000003"]
    pins.unpin(run.files, name)
    rotate(run, keep=1)
    assert run.names() == ["step_00000003"]


def test_checkpoints_wait_until_they_are_evaluated(
    run: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while their watcher is down; of many the newest wait."""
    claims.mark(run.files, pins.waiting(1, "nightly"))
    run.files.replace("evaluations/nightly/step_00000002-1a2b3c4d/done.json", b"{}")
    run.files.replace("evaluations/other/step_00000001-1a2b3c4d/done.json", b"{}")
    rotate(run, keep=1)
    assert run.names() == ["step_00000001", "step_00000003"]
    (run.folder / "checkpoints/step_00000004").mkdir()
    monkeypatch.setattr(pins, "MOST_WAITING", 2)
    rotate(run, keep=1)
    assert run.names() == ["step_00000003", "step_00000004"]
    pins.unpin(run.files, pins.waiting(1, "nightly"))
    claims.mark(run.files, pins.waiting(4, "nightly"))
    (run.folder / "checkpoints/step_00000005").mkdir()
    rotate(run, keep=1)
    assert run.names() == ["step_00000004", "step_00000005"]


def test_a_pin_that_comes_while_a_checkpoint_is_removed_saves_it(
    run: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def slow_rename(source: Path, target: Path) -> None:
        rename(source, target)
        if str(target).endswith(".removed"):
            claims.mark(run.files, pins.reading("step_00000001", "nightly"))

    monkeypatch.setattr(os, "rename", slow_rename)
    run.remove("step_00000001")
    assert "step_00000001" in run.names()


def test_a_forgotten_pin_no_longer_counts(
    run: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    name = pins.reading("step_00000001", "nightly")
    run.files.replace(f"{name}.beat", json.dumps({"at": time.time() - 90_000}).encode())
    assert pins.pinned(run.files, run.names()) == set()
    assert "no sign of life for a day" in caplog.text
