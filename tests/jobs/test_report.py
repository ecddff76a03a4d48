"""The page over evaluations whose data are not a benchmark's."""

import json
import shutil
from pathlib import Path

import pytest

from jobs.evaluation.arguments import EvaluateArgs, FurtherArgs, RetrievalArgs
from jobs.evaluation.run import evaluate
from jobs.predict import Predictor, load
from jobs.report import ReportArgs, report


@pytest.fixture(scope="module")
def model(t5_run: Path) -> Predictor:
    loaded = load(t5_run)
    loaded.folder = t5_run  # type: ignore[attr-defined]
    return loaded


def page(data: Path, folder: Path) -> str:
    out = data.parent / "report.html"
    report(ReportArgs(out, eval=(folder,)))
    return out.read_text(encoding="utf-8")


def answer(model: Predictor, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    out = data.parent / "eval"
    monkeypatch.setattr(model, "respond", lambda encoded, questions: ["Red"] * len(questions))
    args = EvaluateArgs(
        model.folder, data, ("vqa",), out=out, limit=3, further=FurtherArgs(controls=False)
    )
    evaluate(args, model)
    return out


def test_the_only_reference_answer_is_right(
    model: Predictor, benchmark_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(benchmark_data, tmp_path / "data"))
    path = data / "annotations/vqa_test_annotations.json"
    content = json.loads(path.read_text())
    for note in content["annotations"]:
        note["answers"] = [{"answer": "red"}]
    path.write_text(json.dumps(content))
    shown = page(data, answer(model, data, monkeypatch))
    assert shown.count('<span class="mark good">right</span>') == 3
    assert "eval: VQA exact match" in shown
    assert "fewer than 4 reference answers" in shown


def test_a_test_set_is_shown_without_verdicts(
    model: Predictor, benchmark_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(benchmark_data, tmp_path / "data"))
    (data / "annotations/vqa_test_annotations.json").unlink()
    shown = page(data, answer(model, data, monkeypatch))
    assert shown.count("<strong>Red</strong>") == 3
    assert '<span class="mark' not in shown
    assert "nothing was scored: no question has a reference answer." in shown


def test_both_rankings_are_shown(stage1_run: Path, benchmark_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    results = evaluate(EvaluateArgs(stage1_run, benchmark_data, ("retrieval",), out=out))
    shown = page(tmp_path / "data", out)
    assert "ITC alone" in shown and "after ITM&#39;s re-ranking" in shown
    assert "eval: text retrieval R@1, ITC alone" in shown
    assert "among 6 images R@10 of image retrieval is 1 for any model." in shown
    assert results["retrieval"]["itc"].keys() == {
        f"{side}_r{cutoff}" for side in ("tr", "ir") for cutoff in (1, 5, 10)
    }


def test_texts_that_are_no_candidates_have_no_finite_score(
    stage1_run: Path, benchmark_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "eval"
    few = RetrievalArgs(k=3)
    evaluate(EvaluateArgs(stage1_run, benchmark_data, ("retrieval",), out=out, retrieval=few))
    assert "<small>-inf</small>" in page(tmp_path / "data", out)


def test_the_papers_row_is_shown_beside_ours_where_it_was_asked_for(
    stage1_run: Path, benchmark_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "eval"
    args = EvaluateArgs(
        stage1_run, benchmark_data, ("retrieval",), out=out, table=5, row="vit-g", limit=5
    )
    results = evaluate(args)
    assert (results["table"], results["row"]) == (5, "vit-g")
    shown = page(tmp_path / "data", out)
    assert "Beside the paper: eval" in shown
    assert "Image-text retrieval after finetuning on COCO (table 5), row ViT-g." in shown
    ours = f"{100 * results['retrieval']['tr_r1']:.1f}"
    line = f'coco.tr_r1</th><td class="n">85.4</td><td class="n">{ours}</td>'
    assert line in shown
    assert 'flickr30k.tr_r1</th><td class="n">97.6</td><td class="n">–</td>' in shown
    del results["table"], results["row"]
    (out / "results.json").write_text(json.dumps(results))
    assert "Beside the paper" not in page(tmp_path / "data", out)
