"""Scheduled evaluation: every checkpoint once, whatever ends and whoever shares the work."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.checkpoint.store import LocalStore, rotate
from evaluation.board import history
from evaluation.board.page import board
from jobs.evaluation.arguments import EvaluateArgs, FurtherArgs, WatchArgs
from jobs.evaluation.watch import Watch
from tests.jobs.evaluation_files import answers_of

ROOT = Path(__file__).parents[2]
SUITE = "[tasks.vqa]\n[tasks.caption]\n[tasks.retrieval]\n"


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SUITE)
    return path


def steps(t5_run: Path, folder: Path, *numbers: int) -> Path:
    """A run with checkpoints of these steps, which differ in their record alone."""
    source = next((t5_run / "checkpoints").glob("step_*"))
    for number in numbers:
        target = folder / f"checkpoints/step_{number:08d}"
        shutil.copytree(source, target)
        state = json.loads((target / "state.json").read_text())
        (target / "state.json").write_text(json.dumps(state | {"step": number}))
    return folder


def watching(run: Path, data: Path, suite: Path, **options: object) -> Watch:
    watch = WatchArgs(watch=run, once=True, **options)  # type: ignore[arg-type]
    further = FurtherArgs(controls=False)
    return Watch(EvaluateArgs(None, data, suite=str(suite), watching=watch, further=further))


def test_every_checkpoint_is_evaluated_once_and_published(
    t5_run: Path, benchmark_data: Path, tmp_path: Path, suite: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = steps(t5_run, tmp_path / "run", 10, 20)
    (run / "checkpoints/step_00000030").mkdir()  # half written: no state.json
    watching(run, benchmark_data, suite).forever()
    said = capsys.readouterr().out
    assert said.index("evaluating step_00000020") < said.index("evaluating step_00000010")
    (folder,) = (run / "evaluations").iterdir()
    assert folder.name.startswith("small-")
    entries = history.read(LocalStore(folder).files)
    assert {(entry.step, entry.task) for entry in entries} == {
        (step, task) for step in (10, 20) for task in ("vqa", "caption")
    }
    for done in folder.glob("step_*/done.json"):
        results = json.loads((done.parent / "results.json").read_text())
        accuracy = [e for e in entries if (e.step, e.metric) == (results["step"], "accuracy")]
        assert [entry.value for entry in accuracy] == [results["vqa"]["accuracy"]]
    assert len(list((folder / "tensorboard").iterdir())) == 2
    page = (folder / "index.html").read_text()
    assert 'href="step_00000010-' in page and "Over the steps of training" in page
    (pin,) = (run / "checkpoints/pins").iterdir()
    assert pin.name.startswith("every-1--small-")  # the next ones will wait for a watcher
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    watching(run, benchmark_data, suite).forever()  # there is nothing to do
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert "evaluating" not in capsys.readouterr().out


def test_what_was_not_published_is_made_up_for(
    t5_run: Path, benchmark_data: Path, tmp_path: Path, suite: Path
) -> None:
    """A watcher that was killed between any two of its steps leaves the rest to the next."""
    run = steps(t5_run, tmp_path / "run", 10)
    watching(run, benchmark_data, suite).forever()
    (folder,) = (run / "evaluations").iterdir()
    whole = answers_of(folder)
    for gone in ("history/*", "tensorboard/*", "index.html"):
        for path in folder.glob(gone):
            path.unlink()
        watching(run, benchmark_data, suite).forever()
        assert list(folder.glob(gone))
    (done,) = folder.glob("step_*/done.json")
    done.unlink()  # the claim is this process's, which lives: nobody takes it
    assert not watching(run, benchmark_data, suite).one()
    next(folder.glob("step_*/claim-0001.json")).unlink()
    watching(run, benchmark_data, suite).forever()
    kept = {name: data for name, data in answers_of(folder).items() if "answers/" in name}
    assert kept == {name: data for name, data in whole.items() if "answers/" in name}


def test_checkpoints_that_are_gone_are_told(
    t5_run: Path, benchmark_data: Path, tmp_path: Path, suite: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = steps(t5_run, tmp_path / "run", 10, 15, 20, 30)
    watch = watching(run, benchmark_data, suite, stride=10)
    assert [job.step[-2:] for job in watch.find()] == ["30", "20", "10"]
    shutil.rmtree(run / "checkpoints/step_00000020")  # by hand
    assert [job.step[-2:] for job in watch.find()] == ["30", "10"]
    assert "step_00000020 was removed by its run before" in capsys.readouterr().out
    watch.find()
    assert "step_00000020" not in capsys.readouterr().out


def test_another_checkpoint_of_the_same_step_is_another_evaluation(
    t5_run: Path, opt_run: Path, benchmark_data: Path, tmp_path: Path, suite: Path
) -> None:
    first = watching(steps(t5_run, tmp_path / "run", 10), benchmark_data, suite).find()
    shutil.rmtree(tmp_path / "run/checkpoints")
    second = watching(steps(opt_run, tmp_path / "run", 10), benchmark_data, suite).find()
    assert first[0].step == second[0].step and first[0].name != second[0].name


def test_a_number_without_an_interval_has_none(tmp_path: Path) -> None:
    vqa = {
        "accuracy": 0.5,
        "blind": 0.25,
        "count": 8,
        "notes": [],
        "intervals": {"accuracy": [0.4, 0.6]},
        "made_with": {"checkpoint": "c", "preset": {}},
    }
    results = {"step": 5, "recipe": "r", "vqa": vqa}
    rows = list(history.entries_of(results, run="r", name="n", suite="s", finished="t"))
    assert [(r.metric, r.value, r.low) for r in rows[:1]] == [("accuracy", 0.5, 0.4)]
    store = LocalStore(tmp_path).files
    history.append(store, "n", iter(rows))
    history.append(store, "n", iter(rows))
    table = pq.read_table(io.BytesIO(store.read("history/n.parquet")))
    assert table.num_rows == len(rows) == len(history.read(store))
    assert "0.500 (0.400 to 0.600)" in str(board("s-1", history.read(store)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": "10"}, "give a duration such as 30s"),
        ({"every": "0s"}, "give a duration"),
        ({"stride": 0}, "--stride 0"),
    ],
)
def test_wrong_schedules_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WatchArgs(**options)  # type: ignore[arg-type]


def test_what_does_not_go_with_watching_is_named(tmp_path: Path) -> None:
    watch = WatchArgs(watch=tmp_path)
    with pytest.raises(ValueError, match="--watch needs --suite"):
        EvaluateArgs(None, tmp_path, ("vqa",), watching=watch)
    with pytest.raises(ValueError, match="give one of --checkpoint, --watch"):
        EvaluateArgs(tmp_path, tmp_path, suite="paper", watching=watch)


@pytest.mark.slow
def test_watchers_that_share_the_work_and_are_killed(
    t5_run: Path, benchmark_data: Path, tmp_path: Path, suite: Path
) -> None:
    """Two watchers, killed three times at random, while checkpoints appear and are rotated away."""
    run = steps(t5_run, tmp_path / "run", 10)
    line = [sys.executable, "jobs/evaluate.py", "--watch", str(run), "--suite", str(suite),
            "--data", str(benchmark_data), "--every", "1s", "--chunk", "2",
            "--no-controls"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(line, cwd=ROOT, env=environment, start_new_session=True)

    watchers, store, wanted = [start(), start()], LocalStore(run), [10]
    deadline, kills = time.monotonic() + 400, 0
    try:
        while time.monotonic() < deadline:
            done = list((run / "evaluations").glob("*/step_*/done.json"))
            if len(done) == 4:
                break
            if len(done) >= kills + 1 and kills < 3:
                os.killpg(watchers[kills % 2].pid, signal.SIGKILL)
                watchers[kills % 2].wait()
                watchers[kills % 2] = start()
                kills += 1
                wanted.append(10 + 10 * kills)
                steps(t5_run, run, wanted[-1])
                rotate(store, keep=1)
            time.sleep(0.2)
        (folder,) = (run / "evaluations").iterdir()
        while len(list((folder / "history").glob("*"))) < 4 and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        for watcher in watchers:
            os.killpg(watcher.pid, signal.SIGKILL)
    entries = history.read(LocalStore(folder).files)
    assert sorted({entry.step for entry in entries}) == wanted == [10, 20, 30, 40]
    assert kills == 3 and len(list(folder.glob("step_*/done.json"))) == 4
