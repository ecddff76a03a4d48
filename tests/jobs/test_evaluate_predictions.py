"""Files of predictions are scored without a checkpoint, and their mistakes are named."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.evaluation.arguments import EvaluateArgs, FurtherArgs, WorkArgs
from jobs.evaluation.predictions import score_predictions
from jobs.evaluation.run import evaluate


def score(path: Path, data: Path, task: str, out: Path | None = None) -> dict[str, Any]:
    args = EvaluateArgs(None, data, (task,), out=out, work=WorkArgs(predictions=path))  # type: ignore[arg-type]
    return score_predictions(args)[task]


@pytest.fixture(scope="module")
def made(t5_run: Path, benchmark_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("made")
    further = FurtherArgs(controls=False)
    results = evaluate(
        EvaluateArgs(t5_run, benchmark_data, ("vqa", "caption"), out=out, further=further)
    )
    return results, out


@pytest.mark.parametrize(
    ("task", "file"), [("vqa", "vqa_test_results"), ("caption", "captions_test_results")]
)
def test_the_file_of_an_evaluation_has_its_scores(
    made: Any, benchmark_data: Path, tmp_path: Path, task: str, file: str
) -> None:
    results, out = made
    again = score(out / f"{file}.json", benchmark_data, task, tmp_path)
    assert again == {key: results[task][key] for key in results[task] if key != "made_with"}
    assert json.loads((tmp_path / "results.json").read_text())[task] == again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], r"no prediction for question_id \d+ \(1 missing of 12\)"),
        (lambda rows: [*rows, rows[0]], r"question_id \d+ has 2 predictions; keep one"),
        (lambda rows: [*rows, {"question_id": 99, "answer": "x"}], "question_id 99 is not in the"),
        (lambda rows: [*rows, {"question_id": 98}], "entry 12 lacks answer"),
        (lambda rows: {"a": 1}, "is a list of objects"),
    ],
)
def test_wrong_files_are_named(
    made: Any, benchmark_data: Path, tmp_path: Path, change: Any, message: str
) -> None:
    _, out = made
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(change(json.loads((out / "vqa_test_results.json").read_text()))))
    with pytest.raises(ValueError, match=message):
        score(path, benchmark_data, "vqa")


def test_what_a_file_cannot_be_scored_for_is_named(benchmark_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="retrieval takes no file"):
        score(path, benchmark_data, "retrieval")
    with pytest.raises(ValueError, match="one task"):
        EvaluateArgs(None, benchmark_data, ("vqa", "gqa"), work=WorkArgs(predictions=path))
