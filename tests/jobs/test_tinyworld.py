"""The tour, small: every stage by its real command, from noisy pairs to the report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.tinyworld import TourArgs, tour
from jobs.tour.results import targets

ROOT = Path(__file__).parents[2]
SMALL = ["--web", "48", "--human", "24", "--test", "12", "--stage1-steps", "3"]
SMALL += ["--t5-steps", "3", "--opt-steps", "3", "--ranks", "1"]


@pytest.mark.slow
def test_the_tour_runs_to_its_report(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "jobs/tinyworld.py", "--out", str(out), *SMALL]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    results = json.loads((out / "results.json").read_text())
    assert 0.2 < results["capfilt"]["right_before"] < 0.8
    assert results["capfilt"]["right_after"] > results["capfilt"]["right_before"]
    assert results["retrieval"]["chance"] == pytest.approx(1 / 12)
    for family in ("t5", "opt"):
        assert results["caption"][family]["cider"] >= 0
        scores = results["vqa"][family]
        assert {"accuracy", "blind", "text_only", "by_question_type"} <= scores.keys()
        assert scores["text_only"] > 0.8  # the language model reads; three steps teach nothing else
    assert results["caption"]["shuffled"]["cider"] >= 0
    assert {"data", "capfilt", "stage1", "stage2_t5", "evaluation"} <= results["seconds"].keys()

    page = (out / "report.html").read_text()
    assert "CapFilt: web" in page and "stage1: loss" in page and "data:image/" in page
    assert "zero-shot VQA accuracy, T5" in page and "the model says" in page
    assert "vqa.t5.accuracy" in done.stdout


def test_targets_follow_the_controls() -> None:
    results = {
        "capfilt": {"right_before": 0.5, "right_after": 0.84},
        "retrieval": {"tr_r1": 0.5, "ir_r1": 0.4},
        "caption": {
            "t5": {"cider": 0.9, "shuffled_cider": 0.3},
            "opt": {"cider": 0.9, "shuffled_cider": 0.31},
        },
        "vqa": {"t5": {"accuracy": 0.6, "blind": 0.41}},
    }
    assert {key: holds for key, _, _, holds in targets(results)} == {
        "capfilt.right_before": True,
        "capfilt.right_after": False,
        "retrieval.tr_r1": True,
        "retrieval.ir_r1": True,
        "caption.t5.cider": True,
        "caption.opt.cider": False,
        "vqa.t5.accuracy": False,
    }


def test_a_tour_of_other_sizes_is_not_continued(tmp_path: Path) -> None:
    (tmp_path / "tour.json").write_text('{"web": 1}')
    with pytest.raises(ValueError, match="other sizes"):
        tour(TourArgs(out=tmp_path))
