"""LLaVA-Bench as ``jobs/evaluate.py`` runs it: answered, judged by a server, judged again."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.judge import JudgeError
from evaluation.tasks.judged import JudgeArgs
from jobs.evaluation.arguments import EvaluateArgs
from jobs.evaluation.run import evaluate
from jobs.predict import Writer, load
from pipeline.tinyworld.judged import write_judged
from tests.evaluation.judge_server import Reply, says, serve

NAME = "llava_bench"
SHORT = 12


@pytest.fixture(scope="module")
def model(t5_run: Path) -> Writer:
    found = load(t5_run, dtype="fp32")
    assert isinstance(found, Writer)
    found.folder = t5_run  # type: ignore[attr-defined]
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    write_judged(folder, 2, seed=0)
    return folder


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.judge.time.sleep", lambda seconds: None)


def run(model: Writer, data: Path, out: Path, *tasks: str, **judging: Any) -> dict[str, Any]:
    args = EvaluateArgs(
        *(model.folder, data, tasks or (NAME,)),  # type: ignore[arg-type]
        out=out,
        judging=JudgeArgs(**judging, longest_answer=SHORT),
    )
    return evaluate(args, model)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_without_a_judge_answers_are_written_and_not_scored(
    model: Writer, world: Path, tmp_path: Path
) -> None:
    tasks = (NAME, "llava_bench_coco")
    results = run(model, world, tmp_path, *tasks)
    for name, split in zip(tasks, ("test", "val"), strict=True):
        assert results[name]["count"] == 0
        assert (
            "nothing was scored: answers are compared by a judge (--judge)"
            in (results[name]["notes"])
        )
        answers = rows(tmp_path / f"{name}_{split}_answers.jsonl")
        assert [row["question_id"] for row in answers] == list(range(6))
        assert set(answers[0]) >= {"question_id", "prompt", "text", "answer_id", "model_id"}
        assert len({row["answer_id"] for row in answers}) == 6
        assert not (tmp_path / f"{name}_{split}_verdicts.jsonl").exists()
    asked = rows(world / NAME / "questions.jsonl")
    answers = rows(tmp_path / f"{NAME}_test_answers.jsonl")
    assert [row["prompt"] for row in answers] == [row["text"] for row in asked]


def reply(number: int, prompt: str) -> Reply:
    """Every third request meets a busy server; of detailed answers the judge gives no numbers."""
    if number % 3 == 0:
        return 503, {}
    if "in detail" in prompt:
        return says("I cannot decide.")
    return says("8 4\nThe first one is right." if "Why" in prompt else "5 5\nEqual.")


def test_a_server_that_fails_now_and_then_judges_all(
    model: Writer, world: Path, tmp_path: Path
) -> None:
    with serve(reply) as server:
        found = run(model, world, tmp_path, judge=server.url, judge_model="tiny")[NAME]
        asked = len(server.seen)
    assert found["metric"] == "judged.tiny" and found["rule"] == "this project's"
    assert found["by_question_type"] == {"complex": 0.5, "conv": 1.0}
    assert found["relative"] == pytest.approx((4 + 5) / (8 + 5))
    assert (found["count"], found["missing"]) == (4, 2)
    assert found["notes"][-2].startswith("2 of 6 verdicts have no two numbers")
    assert found["notes"][-2].endswith("question 1, 4")
    assert found["notes"][-1].startswith("no interval for relative")  # of six images
    verdicts = rows(tmp_path / f"{NAME}_test_verdicts.jsonl")
    assert [len(row["verdicts"]) for row in verdicts] == [1, 3, 1] * 2
    assert [row["scores"] for row in verdicts] == [[5, 5], None, [8, 4]] * 2
    answers = rows(tmp_path / f"{NAME}_test_answers.jsonl")
    assert all(a["text"] in v["prompt"] for a, v in zip(answers, verdicts, strict=True))
    assert asked == 10 + 5  # 10 texts, and every third request was in vain
    # The file judges as the server did, and a second run asks only where numbers are missing.
    file = str(tmp_path / f"{NAME}_test_verdicts.jsonl")
    again = run(model, world, tmp_path / "again", judge=file)[NAME]
    assert again == found
    with serve(lambda *_: says("10 5")) as server:
        more = run(model, world, tmp_path, judge=server.url, judge_model="tiny")[NAME]
    assert len(server.seen) == more["count"] - found["count"] == 2
    with serve(lambda *_: says("10 5")) as server:
        other = run(model, world, tmp_path, judge=server.url, judge_model="other")[NAME]
    assert (len(server.seen), other["metric"], other["relative"]) == (6, "judged.other", 0.5)


def test_what_was_judged_before_a_failure_is_kept(
    model: Writer, world: Path, tmp_path: Path
) -> None:
    with (
        serve(lambda number, _: says("8 4") if number < 4 else (401, {})) as server,
        pytest.raises(JudgeError, match="judge tiny refuses: status 401"),
    ):
        run(model, world, tmp_path, judge=server.url, judge_model="tiny")
    path = tmp_path / f"{NAME}_test_verdicts.jsonl"
    assert len(rows(path)) == 4
    path.write_text(path.read_text()[:-30])  # the last line was cut off
    with serve(lambda *_: says("8 4")) as server:
        found = run(model, world, tmp_path, judge=server.url, judge_model="tiny")[NAME]
    assert (len(server.seen), found["count"], found["relative"]) == (3, 6, 0.5)
    assert [row["question_id"] for row in rows(path)] == list(range(6))


def test_a_wrong_judge_is_named_before_the_work(
    model: Writer, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "encode", lambda images: pytest.fail("the work had begun"))
    with pytest.raises(ValueError, match="--judge-model"):
        run(model, world, tmp_path, judge="https://x.example/v1")
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl"):
        run(model, world, tmp_path, judge=str(tmp_path / "gone.jsonl"))
