import json
from pathlib import Path

import pytest

from evaluation.data import (
    derangement,
    index_images,
    read_coco_captions,
    read_gqa,
    read_karpathy,
    read_vqa,
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("000001.jpg", "COCO_val2014_000000000002.jpg", "n3.png", "notes.txt"):
        (folder / name).write_bytes(b"x")
    return folder


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_images_by_stem_and_number(images: Path) -> None:
    index = index_images(images)
    assert index[1] == images / "000001.jpg"
    assert index[2] == images / "COCO_val2014_000000000002.jpg"
    assert index["n3"] == index[3] == images / "n3.png"
    assert "notes" not in index


def test_an_ambiguous_number_is_nobodys(images: Path) -> None:
    (images / "other_1.jpg").write_bytes(b"x")
    index = index_images(images)
    assert 1 not in index
    assert index["other_1"] == images / "other_1.jpg"


def test_coco_captions(tmp_path: Path, images: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "000001.jpg", "domain": "out"}],
        "annotations": [{"id": n, "image_id": 1, "caption": c} for n, c in enumerate("ab")],
    }
    (item,) = read_coco_captions(write(tmp_path / "c.json", content), images)
    assert (item.image_id, item.captions, item.domain) == (1, ("a", "b"), "out")
    assert item.path == images / "000001.jpg"


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"images": []}, ValueError, "'annotations' is missing"),
        ({"images": [], "annotations": []}, ValueError, "no entries"),
        ({"images": [{"id": 1}], "annotations": []}, ValueError, "image 1 has no caption"),
        ({"annotations": [{"image_id": 1, "caption": 5}]}, ValueError, "must be str, got 5"),
        ([], ValueError, "missing"),
        (
            {
                "images": [{"id": 1, "file_name": "gone.jpg"}],
                "annotations": [{"image_id": 1, "caption": "a"}],
            },
            FileNotFoundError,
            "gone.jpg is not in",
        ),
    ],
)
def test_broken_coco_captions(
    tmp_path: Path, images: Path, content: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_coco_captions(write(tmp_path / "c.json", content), images)


def test_not_json_and_not_there(tmp_path: Path, images: Path) -> None:
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ValueError, match=r"c\.json is not JSON"):
        read_coco_captions(tmp_path / "c.json", images)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_coco_captions(tmp_path / "d.json", images)


def test_karpathy(tmp_path: Path, images: Path) -> None:
    entry = {"filename": "000001.jpg", "filepath": "val2014", "split": "test", "cocoid": 1}
    content = {"images": [entry | {"sentences": [{"raw": "A star."}]}], "dataset": "coco"}
    path = write(tmp_path / "k.json", content)
    (item,) = read_karpathy(path, images, "test")
    assert (item.image_id, item.captions) == (1, ("A star.",))
    with pytest.raises(ValueError, match="no image of split 'val'; its splits: test"):
        read_karpathy(path, images, "val")


def vqa_files(folder: Path) -> tuple[Path, Path]:
    questions = [{"question_id": 10 + n, "image_id": n, "question": "What?"} for n in (1, 2)]
    notes = [
        {
            "question_id": 10 + n,
            "image_id": n,
            "question_type": "what",
            "answer_type": "other",
            "answers": [{"answer": "red", "answer_id": i} for i in range(10)],
        }
        for n in (1, 2)
    ]
    return (
        write(folder / "q.json", {"questions": questions}),
        write(folder / "a.json", {"annotations": notes}),
    )


def test_vqa(tmp_path: Path, images: Path) -> None:
    asked = read_vqa(*vqa_files(tmp_path), images)
    assert [q.question_id for q in asked.questions] == [11, 12]
    assert asked.questions[0].answers == ("red",) * 10
    assert asked.questions[0].question_type == "what"
    assert asked.images[2] == images / "COCO_val2014_000000000002.jpg"
    blind = asked.shuffled(seed=0)
    assert blind.images == {1: asked.images[2], 2: asked.images[1]}
    assert list(asked.first(1).images) == [1]


def test_vqa_test_set_has_no_answers(tmp_path: Path, images: Path) -> None:
    questions, _ = vqa_files(tmp_path)
    assert read_vqa(questions, None, images).questions[0].answers == ()


def test_vqa_names_what_is_missing(tmp_path: Path, images: Path) -> None:
    questions, notes = vqa_files(tmp_path)
    (images / "COCO_val2014_000000000002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="question 12 asks about image 2"):
        read_vqa(questions, notes, images)
    write(notes, {"annotations": []})
    with pytest.raises(ValueError, match="no annotation for question 11"):
        read_vqa(questions, notes, images)


def test_gqa(tmp_path: Path, images: Path) -> None:
    entry = {"imageId": "1", "question": "Is it?", "answer": "yes", "types": {"semantic": "rel"}}
    asked = read_gqa(write(tmp_path / "g.json", {"77": entry}), images)
    assert asked.questions[0].answers == ("yes",)
    assert asked.questions[0].question_type == "rel"
    assert asked.images["1"] == images / "000001.jpg"
    with pytest.raises(ValueError, match="'answer' is missing"):
        read_gqa(write(tmp_path / "g.json", {"77": {"question": "Is it?"}}), images)


def test_derangement_moves_everything_and_repeats() -> None:
    keys = list(range(50))
    for seed in range(20):
        other = derangement(keys, seed)
        assert sorted(other.values()) == keys
        assert all(key != value for key, value in other.items())
    assert derangement(keys, 3) == derangement(keys, 3) != derangement(keys, 4)
    with pytest.raises(ValueError, match="at least 2"):
        derangement([1], 0)
