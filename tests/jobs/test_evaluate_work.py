"""Evaluations that are ended and go on, by one process or several workers: the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.evaluation.arguments import EvaluateArgs, FurtherArgs, WorkArgs
from jobs.evaluation.run import evaluate
from tests.jobs.evaluation_files import answers_of

ROOT = Path(__file__).parents[2]


def args(checkpoint: Path, data: Path, out: Path, **work: Any) -> EvaluateArgs:
    return EvaluateArgs(
        *(checkpoint, data, ("gqa", "vqa")),
        out=out,
        batch_size=2,
        work=WorkArgs(**{"chunk": 3, "threads": 1} | work),
    )


def test_answers_are_kept_and_not_asked_for_again(
    t5_run: Path, benchmark_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(args(t5_run, benchmark_data, tmp_path))
    before = answers_of(tmp_path)
    monkeypatch.setattr("jobs.evaluation.worker.load", lambda *a: pytest.fail("it was loaded"))
    again = evaluate(args(t5_run, benchmark_data, tmp_path))
    scored = evaluate(args(t5_run, benchmark_data, tmp_path, score_only=True))
    assert answers_of(tmp_path) == before
    for results in (again, scored):
        assert {k: v for k, v in results.items() if k != "seconds"} == {
            k: v for k, v in first.items() if k != "seconds"
        }


def test_a_chunk_that_is_gone_is_answered_alone(
    t5_run: Path, benchmark_data: Path, tmp_path: Path
) -> None:
    evaluate(args(t5_run, benchmark_data, tmp_path))
    before = answers_of(tmp_path)
    gone = tmp_path / "answers/vqa_test/blind-00001.jsonl"
    gone.unlink()
    with pytest.raises(ValueError, match=r"1 of \d+ chunks .* vqa_test/blind-00001; start without"):
        evaluate(args(t5_run, benchmark_data, tmp_path, score_only=True))
    evaluate(args(t5_run, benchmark_data, tmp_path))
    assert answers_of(tmp_path) == before


def test_answers_of_another_checkpoint_or_chunk_are_not_mixed(
    opt_run: Path, t5_run: Path, benchmark_data: Path, tmp_path: Path
) -> None:
    evaluate(args(opt_run, benchmark_data, tmp_path))
    with pytest.raises(ValueError, match=r"made otherwise \(checkpoint: .*; give another --out"):
        evaluate(args(t5_run, benchmark_data, tmp_path))
    with pytest.raises(ValueError, match=r"\(chunk: 3 there, 4 now\)"):
        evaluate(args(opt_run, benchmark_data, tmp_path, chunk=4))
    evaluate(args(t5_run, benchmark_data, tmp_path, replace=True))
    plan = json.loads((tmp_path / "answers/vqa_test/plan.json").read_text())
    assert plan["chunk"] == 3


def test_an_item_that_fails_is_named_and_has_no_empty_answer(
    t5_run: Path, benchmark_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.predict import Writer

    respond = Writer.respond

    def break_on_long(self: Writer, encoded: Any, questions: list[str]) -> list[str]:
        if any("colour" in question for question in questions):
            raise ValueError("the prompt is too long")
        return respond(self, encoded, questions)

    monkeypatch.setattr(Writer, "respond", break_on_long)
    further = FurtherArgs(controls=False)
    with pytest.raises(ValueError, match=r"6 of 12 questions failed.*the prompt is too long"):
        evaluate(EvaluateArgs(t5_run, benchmark_data, ("vqa",), out=tmp_path, further=further))
    rows = (tmp_path / "answers/vqa_test/answers-00000.jsonl").read_text().splitlines()[1:]
    failed = [row for row in map(json.loads, rows) if "failed" in row]
    assert len(failed) == 6 and all("answer" not in row for row in failed)


def test_everything_that_fails_ends_at_once(
    t5_run: Path, benchmark_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> list[str]:
        raise ValueError("NaN")

    monkeypatch.setattr("jobs.predict.Writer.respond", broken)
    with pytest.raises(ValueError, match="NaN"):
        evaluate(args(t5_run, benchmark_data, tmp_path))
    assert not list(tmp_path.glob("answers/*/*.jsonl"))


def command(checkpoint: Path, data: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "jobs/evaluate.py", "--checkpoint", str(checkpoint), "--data",
            str(data), "--tasks", "gqa", "vqa", "--out", str(out), "--batch-size", "2",
            "--chunk", "1", "--threads", "1", *more]  # fmt: skip


@pytest.mark.slow
def test_two_workers_and_kills_leave_the_bytes_of_an_undisturbed_run(
    t5_run: Path, benchmark_data: Path, tmp_path: Path
) -> None:
    """Two workers on a Ray are killed twice, and one process goes on where they were."""
    whole = undisturbed(t5_run, benchmark_data, tmp_path)
    out = tmp_path / "killed"
    with_kills(command(t5_run, benchmark_data, out, "--workers", "2"), out, kills=2)
    subprocess.run(command(t5_run, benchmark_data, out), cwd=ROOT, env=ENVIRONMENT, check=True)
    same(out, whole)


@pytest.mark.long
def test_any_number_of_workers_and_ten_kills_leave_the_bytes_of_an_undisturbed_run(
    t5_run: Path, benchmark_data: Path, tmp_path: Path
) -> None:
    """One process, one, two and four workers on a Ray, and ten kills at random moments."""
    whole = undisturbed(t5_run, benchmark_data, tmp_path)
    for workers in ("1", "2", "4"):
        out = tmp_path / workers
        line = command(t5_run, benchmark_data, out, "--workers", workers)
        subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, check=True)
        same(out, whole)
    out = tmp_path / "killed"
    left = with_kills(command(t5_run, benchmark_data, out), out, kills=7)
    left += with_kills(command(t5_run, benchmark_data, out, "--workers", "2"), out, kills=3)
    subprocess.run(command(t5_run, benchmark_data, out), cwd=ROOT, env=ENVIRONMENT, check=True)
    same(out, whole)
    assert left == 10


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def undisturbed(checkpoint: Path, data: Path, folder: Path) -> Path:
    whole = folder / "whole"
    subprocess.run(command(checkpoint, data, whole), cwd=ROOT, env=ENVIRONMENT, check=True)
    return whole


def with_kills(line: list[str], out: Path, kills: int) -> int:
    """Start a command and kill it, with all its children, after a few more chunks; and again.

    Returns:
        The number of kills: fewer where everything was answered before.
    """
    draw = random.Random(0)
    for kill in range(kills):
        before = len(list(out.glob("answers/*/*.jsonl")))
        process = subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, start_new_session=True)
        wanted = before + draw.randrange(1, 4)
        while len(list(out.glob("answers/*/*.jsonl"))) < wanted:
            if process.poll() is not None:
                return kill
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return kills


def same(out: Path, whole: Path) -> None:
    assert answers_of(out) == answers_of(whole)
    results = [json.loads((one / "results.json").read_text()) for one in (out, whole)]
    assert results[0]["vqa"] == results[1]["vqa"] and results[0]["gqa"] == results[1]["gqa"]
