"""Scenes and what is said of them: the truth parser against captions written by hand."""

import re

import pytest

from pipeline.tinyworld.scene import (
    HELD_OUT_PAIRS,
    Scene,
    Thing,
    domain_of,
    sample_distinct,
    sample_scene,
    stream,
)
from pipeline.tinyworld.text import (
    NOISE,
    annotators,
    captions,
    compositional,
    describe,
    is_true,
    question,
    questions,
    web_caption,
)

SCENE = Scene(
    (
        Thing("orange", "circle", "large", "top", "left"),
        Thing("blue", "star", "small", "bottom", "right"),
    ),
    "striped",
)


@pytest.mark.parametrize(
    "text",
    [
        "an orange circle",
        "A small blue star in the bottom right.",
        "a picture of an orange circle above a blue star on a striped background",
        "two shapes : a blue star and a large orange circle",
        "a blue star to the right of an orange circle",
        "a blue star, an orange circle",
    ],
)
def test_true_captions(text: str) -> None:
    assert is_true(text, SCENE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "shapes",
        "an orange star",  # both words hold, of different objects
        "a small orange circle",
        "an orange circle in the top right",
        "an orange circle below a blue star",
        "a blue star to the left of an orange circle",
        "three shapes : a blue star and an orange circle",
        "an orange circle on a dotted background",
        "an orange circle and a blue st...",
        "an orange circle and",
        "un cercle orange",
        "IMG_0412.jpg",
        "an orange circle and a red ring",
    ],
)
def test_captions_that_are_not_true(text: str) -> None:
    assert not is_true(text, SCENE)


def test_every_generated_caption_is_true_and_fits_32_tokens() -> None:
    for i in range(500):
        rng = stream("captions", i)
        scene = sample_scene(rng)
        made = captions(scene, rng)
        assert len(set(made)) == 5 and made[0] == describe(scene)
        for text in made:
            assert is_true(text, scene), text
            assert len(re.findall(r"\w+|[,:]", text)) <= 30  # and [CLS], [SEP]


def test_web_captions_are_right_half_of_the_time() -> None:
    right, kinds = 0, set()
    for i in range(2000):
        rng = stream("web", i)
        scene = sample_scene(rng)
        text, kind = web_caption(scene, rng)
        right += is_true(text, scene)
        kinds.add(kind)
        assert kind != "right" or is_true(text, scene), text
    assert 0.46 < right / 2000 < 0.56
    assert kinds == set(NOISE)


def test_questions_have_the_answers_that_the_scene_gives() -> None:
    asked = {q.kind: q for i in range(200) for q in questions(SCENE, stream("q", i))}
    assert set(asked) == {"color", "shape", "count", "exists", "relation", "position"}
    for i in range(200):
        color = question(SCENE, "color", stream("c", i))
        assert color is not None
        assert color.answer == {"circle": "orange", "star": "blue"}[color.text[18:-1]]
        relation = question(SCENE, "relation", stream("r", i))
        assert relation is not None
        holds = relation.text in {
            "Is the circle above the star?",
            "Is the star below the circle?",
            "Is the circle to the left of the star?",
            "Is the star to the right of the circle?",
        }
        assert relation.answer == ("yes" if holds else "no")
        pointed = compositional(SCENE, stream("g", i))
        assert pointed is not None and pointed.answer in ("orange", "blue", "circle", "star")
    single = Scene(SCENE.things[:1], "plain")
    assert (
        question(single, "relation", stream(0)) is None and compositional(single, stream(0)) is None
    )


def test_yes_and_no_are_balanced() -> None:
    answers = [question(SCENE, "exists", stream("e", i)) for i in range(1000)]
    yes = sum(q is not None and q.answer == "yes" for q in answers)
    assert 440 < yes < 560


def test_annotators_mostly_agree_with_the_truth() -> None:
    asked = question(SCENE, "color", stream(1))
    assert asked is not None
    given = [a for i in range(200) for a in annotators(asked, stream("a", i))]
    assert 0.85 < given.count(asked.answer) / len(given) < 0.95


def test_domains_share_no_scene() -> None:
    scenes = {d: [sample_scene(stream(d, i), d) for i in range(300)] for d in ("train", "eval")}
    signatures = {d: {s.signature for s in found} for d, found in scenes.items()}
    assert not signatures["train"] & signatures["eval"]
    out = sample_scene(stream("out"), "out")
    assert domain_of(out) == "out" and any(t.pair in HELD_OUT_PAIRS for t in out.things)


def test_distinct_scenes_differ_in_colours_and_shapes() -> None:
    found = sample_distinct(stream("distinct"), "eval", 256)
    named = {frozenset(t.pair for t in scene.things) for scene in found}
    assert len(named) == 256
