import json
from pathlib import Path

import pytest

from evaluation.benchmarks.coco import read_coco_captions
from evaluation.benchmarks.gqa import read_gqa
from evaluation.benchmarks.karpathy import read_karpathy
from evaluation.benchmarks.records import Question, derangement
from evaluation.benchmarks.vqav2 import read_vqa


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
        ({"annotations": []}, ValueError, "'images' is missing"),
        ({"images": []}, ValueError, "no entries"),
        ({"images": [], "annotations": []}, ValueError, "no entries"),
        (
            {"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "a"}]},
            ValueError,
            "image 1 has no caption",
        ),
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
    with pytest.raises(ValueError, match="'imageId' is missing"):
        read_gqa(write(tmp_path / "g.json", {"77": {"question": "Is it?"}}), images)
    with pytest.raises(ValueError, match="'answer' must be str, got 5"):
        read_gqa(write(tmp_path / "g.json", {"77": entry | {"answer": 5}}), images)


def test_gqas_groups_and_entailed_questions(tmp_path: Path, images: Path) -> None:
    entry = {"imageId": "1", "question": "Is it?", "answer": "yes", "isBalanced": False}
    entry |= {"groups": {"global": "color", "local": None}, "entailed": ["8"]}
    bare = {"imageId": "1", "question": "Is it?", "answer": "yes", "groups": {"global": None}}
    asked = read_gqa(write(tmp_path / "g.json", {"7": entry, "8": bare}), images).questions
    assert (asked[0].group, asked[0].entailed, asked[0].balanced) == ("color", ("8",), False)
    assert (asked[1].group, asked[1].entailed, asked[1].balanced) == ("", (), True)


def test_test_sets_have_no_references(tmp_path: Path, images: Path) -> None:
    entry = {"imageId": "1", "question": "Is it?"}
    for one in (entry, entry | {"answer": None}):
        asked = read_gqa(write(tmp_path / "g.json", {"77": one}), images)
        assert asked.questions[0].answers == ()
        assert asked.answered().questions == ()
    shown = {"images": [{"id": 1, "file_name": "000001.jpg"}]}
    for content in (shown, shown | {"annotations": []}):
        (item,) = read_coco_captions(write(tmp_path / "c.json", content), images)
        assert item.captions == item.references == ()


def test_blank_references_are_none(tmp_path: Path, images: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "000001.jpg"}],
        "annotations": [{"image_id": "1", "caption": text} for text in ("", "a", " \n")],
    }
    (item,) = read_coco_captions(write(tmp_path / "c.json", content), images)
    assert (len(item.captions), item.references) == (3, ("a",))
    assert Question(1, 1, "?", ("", "red")).answered
    assert not Question(1, 1, "?", ("", " ")).answered


CAPTIONS = [{"id": 5, "image_id": 1, "caption": "a"}, {"id": 6, "image_id": 2, "caption": "b"}]
SHOWN = [
    {"id": 1, "file_name": "000001.jpg"},
    {"id": 2, "file_name": "COCO_val2014_000000000002.jpg"},
]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"images": [*SHOWN, SHOWN[0] | {"id": "1"}], "annotations": CAPTIONS},
            "image id 1 is given more",
        ),
        ({"images": [*SHOWN, SHOWN[1]]}, "image id 2 is given more"),
        ({"images": SHOWN, "annotations": [*CAPTIONS, CAPTIONS[1]]}, "caption id 6 is given more"),
    ],
)
def test_doubled_ids_of_captions(
    tmp_path: Path, images: Path, content: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_coco_captions(write(tmp_path / "c.json", content), images)


def test_doubled_ids_of_karpathy(tmp_path: Path, images: Path) -> None:
    entry = {"filename": "000001.jpg", "split": "test", "cocoid": 1}
    one = entry | {"sentences": [{"raw": "A star.", "sentid": 3}]}
    other = entry | {"sentences": [{"raw": "A dot.", "sentid": 4}], "split": "val"}
    path = write(tmp_path / "k.json", {"images": [one, other]})
    assert len(read_karpathy(path, images, "test")) == 1  # another split has ids of its own
    write(path, {"images": [one, other | {"split": "test"}]})
    with pytest.raises(ValueError, match="image id 1 is given more than once"):
        read_karpathy(path, images, "test")
    write(path, {"images": [one, one | {"cocoid": 2}]})
    with pytest.raises(ValueError, match="caption id 3 is given more than once"):
        read_karpathy(path, images, "test")


def test_doubled_ids_of_questions(tmp_path: Path, images: Path) -> None:
    questions, notes = vqa_files(tmp_path)
    asked = json.loads(questions.read_text())["questions"]
    write(questions, {"questions": [*asked, asked[0] | {"question_id": "11"}]})
    with pytest.raises(ValueError, match=r"q\.json: question id 11 is given more than once"):
        read_vqa(questions, None, images)
    questions, notes = vqa_files(tmp_path)
    given = json.loads(notes.read_text())["annotations"]
    write(notes, {"annotations": given * 2})
    with pytest.raises(ValueError, match=r"a\.json: question id 11, 12 is given more than once"):
        read_vqa(questions, notes, images)
    entry = json.dumps({"imageId": "1", "question": "Is it?", "answer": "yes", "types": {}})
    (tmp_path / "g.json").write_text(f'{{"7": {entry}, "8": {entry}, "7": {entry}}}')
    with pytest.raises(ValueError, match=r"g\.json: question id 7 is given more than once"):
        read_gqa(tmp_path / "g.json", images)


def test_an_image_that_may_be_several_is_named(tmp_path: Path, images: Path) -> None:
    (images / "n3.jpg").write_bytes(b"x")
    ask = {"questions": [{"question_id": 9, "image_id": "n3", "question": "What?"}]}
    with pytest.raises(ValueError, match=r"question 9 .* any of n3\.jpg, n3\.png in"):
        read_vqa(write(tmp_path / "q.json", ask), None, images)
    ask["questions"][0]["image_id"] = "n3.png"
    found = read_vqa(write(tmp_path / "q.json", ask), None, images)
    assert found.images == {"n3.png": images / "n3.png"}


def test_derangement_moves_everything_and_repeats() -> None:
    keys = list(range(50))
    for seed in range(20):
        other = derangement(keys, seed)
        assert sorted(other.values()) == keys
        assert all(key != value for key, value in other.items())
    assert derangement(keys, 3) == derangement(keys, 3) != derangement(keys, 4)
    with pytest.raises(ValueError, match="at least 2"):
        derangement([1], 0)
