"""Two evaluations are compared in pairs by one command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.compare import compare_runs
from evaluation.intervals.pairs import NotComparable
from jobs.evaluation.arguments import EvaluateArgs, FurtherArgs
from jobs.evaluation.run import evaluate

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(
    t5_run: Path, opt_run: Path, benchmark_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    folders = []
    for name, checkpoint in (("t5", t5_run), ("opt", opt_run)):
        out = tmp_path_factory.mktemp(name)
        few = FurtherArgs(controls=False)
        evaluate(EvaluateArgs(checkpoint, benchmark_data, ("vqa", "caption"), out=out, further=few))
        folders.append(out)
    return folders


def test_the_same_run_twice_has_no_difference(runs: list[Path]) -> None:
    found = compare_runs(str(runs[0]), str(runs[0]))
    assert set(found.tasks) == {"vqa", "caption"}
    for differences in found.tasks.values():
        assert differences and all(one.value == 0 and one.p == 1 for one in differences)


def test_two_runs_are_compared_by_the_command(runs: list[Path], tmp_path: Path) -> None:
    line = [sys.executable, "jobs/evaluate.py", "--compare", *map(str, runs), "--out", tmp_path]
    said = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "vqa.accuracy" in said and "difference" in said
    written = json.loads((tmp_path / "comparison.json").read_text())
    results = [json.loads((run / "results.json").read_text())["caption"]["cider"] for run in runs]
    cider = written["tasks"]["caption"]["cider"]
    assert (cider["first"], cider["second"]) == pytest.approx(results)
    assert cider["difference"] == pytest.approx(results[1] - results[0])


def test_other_questions_are_not_compared(
    runs: list[Path], t5_run: Path, benchmark_data: Path, tmp_path: Path
) -> None:
    few = FurtherArgs(controls=False)
    evaluate(EvaluateArgs(t5_run, benchmark_data, ("vqa",), out=tmp_path, limit=4, further=few))
    with pytest.raises(NotComparable, match="vqa"):
        compare_runs(str(runs[0]), str(tmp_path))
