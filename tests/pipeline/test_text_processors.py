"""Texts as the reference's processors leave them, by hand, and where data become batches."""

import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.loading.loader import Batches, LoaderConfig, Samples, make_schedule
from pipeline.loading.questions import AnsweredQuestion, QuestionShards
from pipeline.shards.reading import Shards, open_shards
from pipeline.text_processors import TextRule, caption_text, question_text
from pipeline.transforms import TrainTransform, TransformConfig
from tests.pipeline.sources.test_sources import tar
from tests.pipeline.test_images import encode

GOOD = encode(Image.new("RGB", (20, 10), (9, 9, 9)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man riding a wave.", "a man riding a wave"),
        ("  Two   DOGS!\n", "two dogs"),
        ('"Stop": it\'s (very) late; *9:30* ~ #5, U.S.A.', "stop it's very late 9 30 5, u s a"),
        ("red-and-white, isn't it?", "red-and-white, isn't it?"),
        ("É un GATTO", "é un gatto"),
        ("!!!", ""),
        (" ".join(f"W{n}." for n in range(60)), " ".join(f"w{n}" for n in range(50))),
    ],
)
def test_a_caption_as_the_reference_has_it(text: str, expected: str):
    assert caption_text(text, "reference") == expected
    assert caption_text(expected, "reference") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What Color is the dog's (left) collar?", "what color is the dog's left collar?"),
        ("Is it 9:30 a.m.?", "is it 930 am?"),
        ("Why? ", "why?"),
        ("two  spaces : stay", "two  spaces  stay"),
        (" ".join(f"W{n}!" for n in range(60)), " ".join(f"w{n}" for n in range(50))),
    ],
)
def test_a_question_as_the_reference_has_it(text: str, expected: str):
    assert question_text(text, "reference") == expected
    assert question_text(expected, "reference") == expected


def test_plain_texts_stay_but_for_white_space():
    assert caption_text(" A  Man.\n", "plain") == "A Man."
    assert question_text("Is it  9:30 A.M.?", "plain") == "Is it  9:30 A.M.?"


def batch(source: Shards, text: TextRule):
    config = LoaderConfig()
    schedule = make_schedule([source], config, 0, 4)
    transform = TrainTransform(TransformConfig(size=8))
    with Batches(Samples([source], schedule, transform, text=text), config, range(1)) as made:
        return next(made)


def test_training_reads_captions_by_the_recipe_s_rule(tmp_path: Path):
    captions = {"a": "A Red Car.", "b": "It's (mine)!", "c": "...", "d": "ok"}
    tar(
        tmp_path / "a.tar",
        [
            member
            for key, text in captions.items()
            for member in ((f"{key}.png", GOOD), (f"{key}.txt", text.encode()))
        ],
    )
    source = open_shards(str(tmp_path))
    assert set(batch(source, "plain").texts) == set(captions.values())
    made = batch(source, "reference")
    assert set(made.texts) == {"a red car", "it's mine", "ok"}
    assert len(made.texts) == 4 and "holds no words" in made.replaced[0]


def test_training_reads_questions_by_the_rule_and_answers_as_they_are(tmp_path: Path):
    (tmp_path / "one.png").write_bytes(GOOD)
    asked = [
        AnsweredQuestion(str(n), tmp_path / "one.png", f"Is it St. {n}:30?", ("St. Louis",))
        for n in range(4)
    ]
    made = batch(QuestionShards("a:train", asked), "reference")
    assert sorted(made.questions) == [f"is it st {n}30?" for n in range(4)]
    assert made.texts == ["St. Louis"] * 4
    record = json.loads(QuestionShards("a:train", asked).members(0, 0)["json"])
    assert record["question"] == "Is it St. 0:30?"  # stored as it came
