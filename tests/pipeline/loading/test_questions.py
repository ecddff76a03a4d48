"""Questions as a source of samples: stable draws, answers as often as given, mistakes told."""

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from pipeline.loading.loader import Batches, LoaderConfig, Samples, make_schedule
from pipeline.loading.questions import AnsweredQuestion, QuestionShards
from pipeline.transforms import TrainTransform, TransformConfig


@pytest.fixture
def asked(tmp_path) -> list[AnsweredQuestion]:
    for name in ("one", "two"):
        Image.new("RGB", (20, 10), "red" if name == "one" else "blue").save(
            tmp_path / f"{name}.png"
        )
    images = [tmp_path / f"{name}.png" for name in ("one", "one", "two", "two")]
    answers = ("red",) * 3 + ("pink", " ")
    return [
        AnsweredQuestion(str(k), image, f"What {k}?", answers) for k, image in enumerate(images)
    ]


def batches(source: QuestionShards, steps: int) -> list:
    config = LoaderConfig()
    schedule = make_schedule([source], config, 0, 4)
    with Batches(
        Samples([source], schedule, TrainTransform(TransformConfig(size=8))), config, range(steps)
    ) as made:
        return list(made)


def test_a_batch_of_questions(asked):
    (batch,) = batches(QuestionShards("a/b:train", asked), 1)
    assert sorted(batch.questions) == ["What 0?", "What 1?", "What 2?", "What 3?"]
    assert batch.images_B3HW.shape == (4, 3, 8, 8)
    by_question = dict(zip(batch.questions, batch.image_ids_B.tolist(), strict=True))
    assert by_question["What 0?"] == by_question["What 1?"] != by_question["What 2?"]


def test_answers_are_drawn_as_often_as_they_were_given(asked):
    texts = [
        text for batch in batches(QuestionShards("a:train", asked), 100) for text in batch.texts
    ]
    counts = Counter(texts)
    assert counts.keys() == {"red", "pink"} and 70 < counts["pink"] < 130  # a quarter of 400


def test_moved_data_gives_the_same_samples(asked):
    one, other = (QuestionShards(f"{folder}:train", asked) for folder in ("a", "elsewhere/b"))
    assert one.digest == other.digest
    records = [source.members(0, 1)["json"] for source in (one, other)]
    assert records[0] == records[1]


def test_a_missing_image_is_replaced(asked):
    asked[0] = AnsweredQuestion("0", Path("/nowhere.png"), "What 0?", ("red",))
    (batch,) = batches(QuestionShards("a:train", asked), 1)
    assert "What 0?" not in batch.questions and len(batch.questions) == 4
    assert any("/nowhere.png cannot be read" in line for line in batch.replaced)


def test_nothing_to_learn_is_told(asked):
    with pytest.raises(ValueError, match="no question in it"):
        QuestionShards("a:train", [])
    with pytest.raises(ValueError, match="question 7 has no answer to learn"):
        QuestionShards("a:train", [*asked, AnsweredQuestion("7", Path("x"), "Why?", (" ",))])
