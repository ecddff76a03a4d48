"""``jobs/evaluate.py`` on the benchmarks' own files, as TinyWorld writes them."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from evaluation.benchmarks.catalogue import BENCHMARKS
from evaluation.results import TASKS, paper_metrics, print_results
from evaluation.scores import lemmas
from jobs.evaluation.arguments import EvaluateArgs, FurtherArgs, ScoringArgs, Task
from jobs.evaluation.run import evaluate
from jobs.predict import Predictor, load
from pipeline.tinyworld.benchmarks import write_benchmarks

ANSWERED = [name for name, benchmark in BENCHMARKS.items() if benchmark.way == "answer"]


@pytest.fixture(scope="module")
def model(t5_run: Path) -> Predictor:
    loaded = load(t5_run)
    loaded.folder = t5_run  # type: ignore[attr-defined]
    return loaded


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_benchmarks(folder, 3, seed=0)
    return folder


def run(
    model: Predictor, data: Path, out: Path, *tasks: str, split: str | None = None, **answers: Any
) -> dict[str, Any]:
    args = EvaluateArgs(
        *(model.folder, data, tasks),  # type: ignore[arg-type]
        split=split,
        out=out,
        scoring=ScoringArgs(**answers),
        further=FurtherArgs(controls=False),
    )
    return evaluate(args, model)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_every_benchmark_is_a_task() -> None:
    assert set(get_args(Task)) == {*BENCHMARKS, "caption", "vqa", "gqa", "retrieval"}
    assert set(get_args(Task)) <= set(TASKS)


def test_choices_in_every_benchmark_of_choices(
    model: Predictor, world: Path, tmp_path: Path
) -> None:
    """Candidates are ranked by the language model itself; a score of chance is near."""
    names = [name for name, benchmark in BENCHMARKS.items() if benchmark.way == "choose"]
    assert {"visdial", "vsr", "scienceqa"} <= set(names)
    results = run(model, world, tmp_path, *names)
    for name in names:
        scores, split = results[name], BENCHMARKS[name].splits[0]
        assert scores["count"] > 0 and scores["split"] == split
        rows = read(tmp_path / f"{name}_{split}_results.json")
        assert len(rows) >= scores["count"]
    assert 0 < results["visdial"]["mrr"] <= 1 and 0 <= results["hatefulmemes"]["auroc"] <= 1


def test_answers_to_every_benchmark(
    model: Predictor, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(model, world, tmp_path, *ANSWERED)
    for name in ANSWERED:
        benchmark, scores = BENCHMARKS[name], results[name]
        assert 0 <= scores["accuracy"] <= 1
        assert scores["count"] > 0
        assert scores["metric"] == benchmark.metric
        assert scores["split"] == benchmark.splits[0]
        assert (tmp_path / f"{name}_{benchmark.splits[0]}_results.json").is_file()
    # What the servers take where it is not VQAv2's format.
    gqa = read(tmp_path / "gqa_testdev_balanced_submission.json")
    assert gqa and all(set(row) == {"questionId", "prediction"} for row in gqa)
    vizwiz = read(tmp_path / "vizwiz_val_submission.json")
    assert vizwiz[0]["image"] == "VizWiz_val_00000001.jpg"
    direct = read(tmp_path / "aokvqa_val_submission.json")
    assert all(set(row) == {"direct_answer"} for row in direct.values())
    rows = read(tmp_path / "okvqa_val_results.json")
    assert all(isinstance(row["question_id"], int) for row in rows)
    assert set(paper_metrics(2, results)) == {"vqav2.val", "okvqa.test", "gqa.test-dev"}
    print_results(results)
    assert "okvqa.accuracy" in capsys.readouterr().out


def test_captions_of_a_test_set_and_of_flickr(
    model: Predictor, world: Path, tmp_path: Path
) -> None:
    scores = run(model, world, tmp_path, "nocaps", split="test")["nocaps"]
    assert scores["count"] == 0
    rows = read(tmp_path / "nocaps_test_results.json")
    assert [row["image_id"] for row in rows] == [0, 1, 2]
    scores = run(model, world, tmp_path, "flickr30k")["flickr30k"]
    assert scores["count"] == 3
    assert {"cider", "split"} <= set(scores)
    assert (tmp_path / "flickr30k_test_results.json").is_file()


def test_retrieval_of_both_benchmarks(stage1_run: Path, world: Path, tmp_path: Path) -> None:
    model = load(stage1_run)
    model.folder = stage1_run  # type: ignore[union-attr]
    tasks = ("coco_retrieval", "flickr30k_retrieval")
    results = run(model, world, tmp_path, *tasks)  # type: ignore[arg-type]
    for name in tasks:
        assert (results[name]["images"], results[name]["texts"]) == (3, 15)
        assert (tmp_path / f"{name}_test_examples.json").is_file()
    assert {"coco.tr_r1", "flickr30k.ir_r10"} <= set(paper_metrics(5, results))


def test_a_test_set_is_answered_and_not_scored(
    model: Predictor, world: Path, tmp_path: Path
) -> None:
    results = run(model, world, tmp_path, "textvqa", "vizwiz", "aokvqa", split="test")
    for name in ("textvqa", "vizwiz", "aokvqa"):
        assert results[name]["count"] == 0
        assert any("nothing was scored" in note for note in results[name]["notes"])
        assert read(tmp_path / f"{name}_test_results.json")
    assert len(read(tmp_path / "vizwiz_test_submission.json")) == 3


def test_metric_variants_are_chosen_and_told(model: Predictor, world: Path, tmp_path: Path) -> None:
    results = run(model, world, tmp_path, "vqav2", "textvqa", "gqa", vqa_metric="lavis",
                  gqa_metric="strict")  # fmt: skip
    assert results["vqav2"]["metric"] == results["textvqa"]["metric"] == "vqa.lavis"
    assert results["gqa"]["metric"] == "gqa.strict"


def test_prompts_of_instructblip_hold_the_ocr_words(
    model: Predictor, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def speak(encoded: Any, prompts: Any, settings: Any) -> list[str]:
        asked.extend(prompts)
        return ["x"] * len(prompts)

    monkeypatch.setattr(model, "speak", speak)
    assert run(model, world, tmp_path, "textvqa", prompts="instruct")["textvqa"]["prompts"]
    assert all(text.startswith("OCR tokens: ") for text in asked)
    assert all(text.endswith("? Short answer:") for text in asked)


def test_answers_are_lemmatised_where_references_are_lemmas(
    model: Predictor, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "respond", lambda encoded, asked: ["reds"] * len(asked))
    monkeypatch.setattr(lemmas.importlib.util, "find_spec", lambda name: None)
    plain = run(model, world, tmp_path, "okvqa")["okvqa"]
    assert any(note.startswith("answers are not lemmatised") for note in plain["notes"])
    assert plain["by_question_type"]["color"] == 0.0
    change = (lambda answer: answer.removesuffix("s"), "answers are lemmatised by a fake")
    monkeypatch.setattr("evaluation.tasks.scoring.load_lemmatiser", lambda: change)
    found = run(model, world, tmp_path, "okvqa", "vqav2")
    assert "answers are lemmatised by a fake" in found["okvqa"]["notes"]
    assert not any("lemmatised" in note for note in found["vqav2"]["notes"])
    assert found["okvqa"]["exact_match"] > plain["exact_match"]
    assert {row["answer"] for row in read(tmp_path / "okvqa_val_results.json")} == {"reds"}


def test_gqa_of_a_common_folder_stays(
    model: Predictor, benchmark_data: Path, tmp_path: Path
) -> None:
    results = run(model, benchmark_data, tmp_path, "gqa")
    assert results["gqa"]["count"] == 6
    assert (tmp_path / "gqa_test_results.json").is_file()


def test_a_benchmark_without_its_folder_is_named(
    model: Predictor, benchmark_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*okvqa, for the files of OK"):
        run(model, benchmark_data, tmp_path, "okvqa")
    with pytest.raises(ValueError, match="okvqa has no split 'test'; its splits: val, train"):
        run(model, benchmark_data, tmp_path, "okvqa", split="test")
