"""MSVD-QA, MSRVTT-QA and iVQA: both forms of their files, their candidates, their mistakes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.benchmarks.catalogue import BENCHMARKS
from evaluation.benchmarks.folder import Asked
from evaluation.benchmarks.records import QuestionSet
from evaluation.candidates import read_candidates
from evaluation.scores.answers import METRICS
from pipeline.tinyworld.videos import SECONDS, write_videos
from tests.evaluation.benchmarks.tiny_benchmarks import edit


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder, 3, seed=0)
    return folder


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "copy"))


def load(data: Path, name: str, split: str | None = None) -> QuestionSet:
    asked = BENCHMARKS[name].load(data, split)
    assert isinstance(asked, Asked)
    return asked.questions


def test_msvd_finds_its_clips_by_youtubes_names(world: Path) -> None:
    asked = load(world, "msvdqa")
    assert asked.images["-tiny000004_4_7"] == world / "msvdqa/video/-tiny000004_4_7.avi"
    assert [q.question_id for q in asked.questions] == list(range(len(asked.questions)))
    assert {q.question_type for q in asked.questions} <= {"what", "how", "is"}


def test_msrvtt_finds_videos_by_number_in_any_folder(copy: Path) -> None:
    (copy / "msrvttqa/video").rename(copy / "msrvttqa/TestVideo")
    asked = load(copy, "msrvttqa")
    assert set(asked.images) == {"video4", "video5", "video6"}
    (copy / "msrvttqa/TestVideo/deep").mkdir()
    shutil.copy(copy / "msrvttqa/TestVideo/video4.mp4", copy / "msrvttqa/TestVideo/deep")
    with pytest.raises(ValueError, match=r"video4\.mp4 have one name"):
        load(copy, "msrvttqa")


@pytest.mark.parametrize("name", ["msvdqa", "msrvttqa"])
def test_the_references_files_ask_the_same(copy: Path, name: str) -> None:
    """``qa_test.json`` names a video by its file, and answers by ``train_ans2label.json``."""
    ours = load(copy, name)
    folder = copy / name
    entries = [
        {
            "question_id": q.question_id,
            "video": ours.images[q.image_id].name,
            "question": q.text,
            "answer": q.answers[0],
        }
        for q in ours.questions
    ]
    (folder / "qa_test.json").write_text(json.dumps(entries))
    labels = {"yes": 1, "no": 0, "red": 2}
    (folder / "train_ans2label.json").write_text(json.dumps(labels))
    for file in (folder / "test_qa.json", folder / "youtube_mapping.txt"):
        file.unlink(missing_ok=True)
    assert load(copy, name) == ours
    assert BENCHMARKS[name].own_candidates(copy) == ("no", "yes", "red")


def test_candidates_are_the_most_frequent_training_answers(copy: Path) -> None:
    said = [f"a{n % 1600}" for n in range(1600 + 1500)]
    edit(copy / "msrvttqa/train_qa.json", lambda c: [c[0] | {"answer": one} for one in said])
    assert BENCHMARKS["msrvttqa"].own_candidates(copy) == tuple(f"a{n}" for n in range(1500))
    edit(copy / "msvdqa/train_qa.json", lambda c: [c[0] | {"answer": one} for one in said])
    assert len(BENCHMARKS["msvdqa"].own_candidates(copy)) == 1600
    assert BENCHMARKS["ivqa"].own_candidates(copy) == ()
    (copy / "msvdqa/train_qa.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no train_ans2label\.json or train_qa\.json or"):
        BENCHMARKS["msvdqa"].own_candidates(copy)


def test_ivqa_asks_about_a_part_or_its_own_file(copy: Path) -> None:
    asked = load(copy, "ivqa")
    part = f"test-000001_{SECONDS}_{2 * SECONDS}"
    whole = copy / "ivqa/video/test-000001.mp4"
    assert str(asked.images[part]) == f"{whole}#t={SECONDS},{2 * SECONDS}"
    assert all(len(question.answers) == 5 for question in asked.questions)
    whole.rename(whole.with_name(f"{part}.mp4"))
    assert load(copy, "ivqa").images[part] == whole.with_name(f"{part}.mp4")


def test_ivqa_candidates_were_given_twice(tmp_path: Path) -> None:
    head = "question,answer1,answer2,answer3,answer4,answer5\n"
    (tmp_path / "train.csv").write_text(head + "a,red,red,one,two,blue\nb,blue,blue,three,,four\n")
    assert read_candidates(tmp_path / "train.csv", 9) == ["blue", "red"]
    (tmp_path / "train.csv").write_text("question,answer\n")
    with pytest.raises(ValueError, match="column 'answer1' is missing"):
        read_candidates(tmp_path / "train.csv", 9)


def test_scores_by_hand() -> None:
    score = METRICS["ivqa.official"]
    said = ["knife", "a knife", "Knife ", "spoon", "spoon"]
    assert [score(one, said) for one in (" Knife", "a knife", "spoon", "fork")] == [1, 0.5, 1, 0]
    exact = METRICS["videoqa.official"]
    assert (exact("Guitar ", ["guitar"]), exact("a guitar", ["guitar"])) == (1, 0)


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        ("msvdqa/test_qa.json", lambda c: c[1].update(id=c[0]["id"]), "question id 0 is given"),
        ("msvdqa/test_qa.json", lambda c: c[1].pop("id") and None, "field 'id' is missing"),
        ("msvdqa/test_qa.json", lambda c: c[1].pop("video_id") and None, "'video_id' is missing"),
        ("msvdqa/test_qa.json", lambda c: c[1].update(video_id=99), "video 99 is not in .*mapping"),
        ("msvdqa/test_qa.json", lambda c: {"annotations": c}, "questions about videos are a list"),
        ("msvdqa/test_qa.json", lambda c: [], "holds no entries"),
        ("msrvttqa/test_qa.json", lambda c: c[1].update(answer=3), "'answer' must be str, got 3"),
    ],
)
def test_mistakes_in_files_are_named(
    copy: Path, source: str, change: Callable, message: str
) -> None:
    edit(copy / source, change)
    with pytest.raises(ValueError, match=message) as raised:
        load(copy, source.partition("/")[0])
    assert str(copy / source) in str(raised.value)


def test_missing_videos_are_named(copy: Path) -> None:
    edit(copy / "msrvttqa/test_qa.json", lambda c: c[1].update(video_id=99))
    expected = r"question 1 asks about video video99, and no video video99 or 99 or vid99 is in"
    with pytest.raises(FileNotFoundError, match=expected):
        load(copy, "msrvttqa")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("video_id,start", "video,start", "column 'video_id' is missing; it is another file or"),
        (",3,6,", ",three,6,", "question 0: 'start' is a number of seconds, got 'three'"),
        (",3,6,", ",6,3,", "give 0 <= start < end"),
        (",3,6,", ",3,", "row 0 has not as many fields as the head"),
    ],
)
def test_mistakes_in_tables_are_named(copy: Path, old: str, new: str, message: str) -> None:
    path = copy / "ivqa/test.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        load(copy, "ivqa")
