"""Chunks are a function of the data alone, and an image's questions stay together."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.storage.base import Conflict
from evaluation.benchmarks.records import Question, QuestionSet
from evaluation.chunks.cut import Chunk, cut, digest_of, in_order
from evaluation.chunks.store import AnswerStore
from evaluation.tasks.base import Pass, without_failed
from evaluation.tasks.questions import askings


def questions(images: int = 5, each: int = 3) -> QuestionSet:
    asked = [Question(f"{n}-{i}", n, f"What is {i}?") for i in range(each) for n in range(images)]
    return QuestionSet(tuple(asked), {n: Path(f"folder/{n}.jpg") for n in range(images)})


def chunks(size: int = 4) -> list[Chunk]:
    return cut("vqa", "test", askings(questions()), size)


def test_an_images_questions_are_in_one_chunk() -> None:
    found = chunks()
    assert [len(chunk.items) for chunk in found] == [6, 6, 3]
    images = [{item.question.image_id for item in chunk.items} for chunk in found]
    assert images == [{0, 1}, {2, 3}, {4}]
    assert sorted(place for chunk in found for place in chunk.places) == list(range(15))
    with pytest.raises(ValueError, match="at least 1 item"):
        chunks(0)


def test_rows_come_back_in_the_order_of_the_questions() -> None:
    one = askings(questions())
    found = [[{"question_id": i.question.question_id} for i in c.items] for c in chunks()]
    rows = in_order(one, chunks(), found)  # type: ignore[arg-type]
    assert [row["question_id"] for row in rows] == [q.question_id for q in questions().questions]


def test_the_digest_is_of_the_content_and_not_of_the_folder() -> None:
    here = questions()
    moved = replace(here, images={n: Path("else") / path.name for n, path in here.images.items()})
    assert digest_of([askings(here)]) == digest_of([askings(moved)])
    other = replace(here, questions=(replace(here.questions[0], text="?"), *here.questions[1:]))
    assert digest_of([askings(here)]) != digest_of([askings(other)])


def test_a_chunks_file_is_written_once_and_read_back(tmp_path: Path) -> None:
    store, (first, second, _) = AnswerStore(str(tmp_path)), chunks()
    rows = [{"question_id": i.question.question_id, "answer": "réd\n"} for i in first.items]
    assert not store.is_answered(first)
    assert store.write(first, rows) and not store.write(first, rows)  # type: ignore[arg-type]
    assert store.is_answered(first) and store.read(first) == rows
    assert store.answered("vqa", "test") == {first.name}
    with pytest.raises(Conflict):
        store.write(first, rows[::-1])  # type: ignore[arg-type]
    arrays = {"scores": np.arange(6, dtype=np.float32)}
    store.write(second, arrays)
    again = store.read(second)
    assert isinstance(again, dict) and np.array_equal(again["scores"], arrays["scores"])
    data = (tmp_path / f"answers/{second.name}.npz").read_bytes()
    AnswerStore(str(tmp_path / "other")).write(second, arrays)
    assert (tmp_path / f"other/answers/{second.name}.npz").read_bytes() == data


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    store, (first, *_) = AnswerStore(str(tmp_path)), chunks()
    rows = [{"question_id": i.question.question_id, "answer": "red"} for i in first.items]
    store.write(first, rows)  # type: ignore[arg-type]
    path = tmp_path / f"answers/{first.name}.jsonl"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"answers-00000\.jsonl is damaged .*; remove it"):
        store.read(first)
    path.write_text(whole.replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(ValueError, match=r"answers to other items .*--replace"):
        store.read(first)


def test_another_plan_is_refused_and_named(tmp_path: Path) -> None:
    store = AnswerStore(str(tmp_path))
    store.open_plan("vqa", "test", {"step": 1, "seed": 0})
    store.open_plan("vqa", "test", {"step": 1, "seed": 0})
    with pytest.raises(ValueError, match=r"task vqa .*\(step: 1 there, 2 now\).*--replace"):
        store.open_plan("vqa", "test", {"step": 2, "seed": 0})
    store.remove("vqa", "test")
    assert store.plan("vqa", "test") is None


def test_few_failed_items_are_told_and_many_fail_the_task() -> None:
    rows = [{"question_id": n, "answer": "red"} for n in range(2000)]
    kept, notes = without_failed([*rows, {"question_id": 7, "failed": "too long"}], "questions")
    assert kept == rows
    assert notes == [
        "1 of 2001 questions failed, the first of them 7: too long; they were not scored"
    ]
    with pytest.raises(ValueError, match=r"1 of 11 questions failed, the first of them 7"):
        without_failed([*rows[:10], {"question_id": 7, "failed": "too long"}], "questions")


def test_a_pass_may_have_chunks_of_its_own_size() -> None:
    pieces = cut("t", "s", Pass("texts", ["a", "b", "c"], chunk=1), 256)
    assert [piece.items for piece in pieces] == [("a",), ("b",), ("c",)]
    assert [piece.name for piece in pieces][:2] == ["t_s/texts-00000", "t_s/texts-00001"]
