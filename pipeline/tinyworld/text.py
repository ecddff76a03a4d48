"""The texts about a TinyWorld picture: captions, questions and answers, web noise, the truth.

The caption grammar, which :func:`is_true` also reads back::

    caption    = [opener] ["two shapes:"] item {("," | "and" | ", and") item} [background]
    item       = thing [place | relation thing]
    thing      = "a" | "an" [size] colour shape
    place      = "in the top left"
    relation   = "above" | "below" | "to the left of" | "to the right of"
    background = "on a striped background"
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline.tinyworld.scene import (
    COLORS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    is_above,
    is_left_of,
    sample_scene,
)

NUMBERS = ("zero", "one", "two", "three")
OPENERS = ("", "", "", "a picture of", "an image of", "this is", "we can see", "a drawing of")
RELATIONS: dict[str, Callable[[Thing, Thing], bool]] = {
    "above": is_above,
    "below": lambda a, b: is_above(b, a),
    "to the left of": is_left_of,
    "to the right of": lambda a, b: is_left_of(b, a),
}

QuestionKind = Literal["color", "shape", "count", "exists", "relation", "position"]
QUESTION_KINDS: tuple[QuestionKind, ...] = (
    "color",
    "shape",
    "count",
    "exists",
    "relation",
    "position",
)
NoiseKind = Literal[
    "right", "other image", "vague", "file name", "boilerplate", "truncated", "other language"
]
NOISE: dict[NoiseKind, float] = {
    "right": 0.5,
    "other image": 0.2,
    "vague": 0.08,
    "file name": 0.07,
    "boilerplate": 0.06,
    "truncated": 0.05,
    "other language": 0.04,
}


@dataclass(frozen=True, slots=True)
class SceneQuestion:
    """One question about one scene, with its one right answer."""

    text: str
    answer: str
    kind: QuestionKind


# ---------------------------------------------------------------------------- captions


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _thing(thing: Thing, sized: bool) -> str:
    return _article(f"{thing.size + ' ' if sized else ''}{thing.color} {thing.shape}")


def _placed(thing: Thing, sized: bool) -> str:
    return f"{_thing(thing, sized)} in the {thing.row} {thing.column}"


def _join(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def describe(scene: Scene) -> str:
    """The complete caption: size, colour, shape and place of everything, in reading order."""
    return _join([_placed(thing, sized=True) for thing in scene.things])


def _true_relation(a: Thing, b: Thing, rng: random.Random) -> str:
    return rng.choice([word for word, holds in RELATIONS.items() if holds(a, b)])


def caption(scene: Scene, rng: random.Random) -> str:
    """One true caption that names every object, with some of: sizes, places, relations, count."""
    things = list(scene.things)
    rng.shuffle(things)
    sized = rng.random() < 0.4
    style = rng.choice(("list", "places", "places", "relation"))
    if style == "places":
        items = [_placed(thing, sized) for thing in things]
    elif style == "relation" and len(things) > 1:
        relation = _true_relation(things[0], things[1], rng)
        first = f"{_thing(things[0], sized)} {relation} {_thing(things[1], sized)}"
        items = [first, *(_placed(thing, sized) for thing in things[2:])]
    else:
        items = [_thing(thing, sized) for thing in things]
    if len(things) > 1 and rng.random() < 0.2:
        start = f"{NUMBERS[len(things)]} shapes : "
    else:
        start = rng.choice(OPENERS)
        start = start and start + " "
    # The longest captions go without: 32 tokens must hold all of it.
    long = style == "places" and len(things) == 3
    background = "" if long or rng.random() < 0.7 else f" on a {scene.texture} background"
    return f"{start}{_join(items)}{background}"


def captions(scene: Scene, rng: random.Random, count: int = 5) -> list[str]:
    """``count`` different reference captions, the first of them complete."""
    found = {describe(scene): None}
    while len(found) < count:
        found[caption(scene, rng)] = None
    return list(found)


# ------------------------------------------------------------------------------- truth

_WORD = re.compile(r"[a-z]+|[,:]|\d+|\S")
_THING = rf"an? (?:({'|'.join(SIZES)}) )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
_ITEM = re.compile(
    rf"{_THING}(?: in the (top|bottom) (left|right)| ({'|'.join(RELATIONS)}) {_THING})?"
)
_START = re.compile(
    rf"(?:(?:{'|'.join(sorted({o for o in OPENERS if o}))}) |({'|'.join(NUMBERS)}) shapes : )?"
)
_BACKGROUND = re.compile(rf" on a ({'|'.join(TEXTURES)}) background")
_GLUE = re.compile(r" (?:, and|,|and) ")


def _thing_holds(thing: Thing, *said: str | None) -> bool:
    """Whether each word said of the thing (size, row, column) holds."""
    return all(word is None or word in (thing.size, thing.row, thing.column) for word in said)


def _item_holds(scene: Scene, item: re.Match[str]) -> bool:
    size, color, shape, row, column, relation, size2, color2, shape2 = item.groups()
    first = scene.find(color, shape)
    if first is None or not _thing_holds(first, size, row, column):
        return False
    if relation is None:
        return True
    second = scene.find(color2, shape2)
    return second is not None and _thing_holds(second, size2) and RELATIONS[relation](first, second)


def is_true(text: str, scene: Scene) -> bool:
    """Whether ``text`` is a whole caption of the grammar and all that it says holds in ``scene``.

    At least one object is named by colour and shape. Vague, cut-off, foreign and mistaken texts are
    not true; case and a full stop at the end do not matter.
    """
    text = " ".join(_WORD.findall(text.lower().removesuffix(".")))
    start = _START.match(text)
    assert start is not None  # it may match nothing
    if start[1] is not None and start[1] != NUMBERS[len(scene.things)]:
        return False
    at = start.end()
    while True:
        item = _ITEM.match(text, at)
        if item is None or not _item_holds(scene, item):
            return False
        at = item.end()
        if glue := _GLUE.match(text, at):
            at = glue.end()
            continue
        if background := _BACKGROUND.match(text, at):
            if background[1] != scene.texture:
                return False
            at = background.end()
        return at == len(text)


# --------------------------------------------------------------------------- questions


def _exists(scene: Scene, rng: random.Random) -> SceneQuestion:
    if rng.random() < 0.5:
        color, shape = rng.choice(scene.things).pair
        answer = "yes"
    else:  # right colour with a wrong shape or the reverse, half the time
        while True:
            color, shape = rng.choice(COLORS), rng.choice(SHAPES)
            near = rng.choice(scene.things)
            if rng.random() < 0.5:
                color, shape = rng.choice(((near.color, shape), (color, near.shape)))
            if scene.find(color, shape) is None:
                break
        answer = "no"
    return SceneQuestion(f"Is there {_article(color)} {shape}?", answer, "exists")


def _relation(scene: Scene, rng: random.Random) -> SceneQuestion | None:
    if len(scene.things) < 2:
        return None
    a, b = rng.sample(scene.things, 2)
    answer = rng.choice(("yes", "no"))
    # A false relation is the reverse of a true one, so that the picture, not habit, decides.
    word = _true_relation(a, b, rng) if answer == "yes" else _true_relation(b, a, rng)
    return SceneQuestion(f"Is the {a.shape} {word} the {b.shape}?", answer, "relation")


def _position(scene: Scene, rng: random.Random) -> SceneQuestion:
    thing = rng.choice(scene.things)
    if rng.random() < 0.5:
        return SceneQuestion(
            f"Is the {thing.shape} on the left or on the right?", thing.column, "position"
        )
    return SceneQuestion(
        f"Is the {thing.shape} at the top or at the bottom?", thing.row, "position"
    )


def question(scene: Scene, kind: QuestionKind, rng: random.Random) -> SceneQuestion | None:
    """One question of ``kind``, or None where the scene has nothing to ask (a relation of one)."""
    thing = rng.choice(scene.things)
    match kind:
        case "color":
            return SceneQuestion(f"What color is the {thing.shape}?", thing.color, kind)
        case "shape":
            return SceneQuestion(f"What shape is the {thing.color} object?", thing.shape, kind)
        case "count":
            return SceneQuestion("How many shapes are there?", str(len(scene.things)), kind)
        case "exists":
            return _exists(scene, rng)
        case "relation":
            return _relation(scene, rng)
        case "position":
            return _position(scene, rng)


def questions(scene: Scene, rng: random.Random) -> list[SceneQuestion]:
    """One question of every kind that the scene allows."""
    asked = (question(scene, kind, rng) for kind in QUESTION_KINDS)
    return [q for q in asked if q is not None]


def compositional(scene: Scene, rng: random.Random) -> SceneQuestion | None:
    """A GQA-like question that needs a relation to find what it asks about."""
    if len(scene.things) < 2:
        return None
    a, b = rng.sample(scene.things, 2)
    others = [t for t in scene.things if t is not b]
    word = _true_relation(a, b, rng)
    if sum(RELATIONS[word](t, b) for t in others) > 1:  # two shapes left of b: nothing to point at
        return None
    if rng.random() < 0.5:
        return SceneQuestion(f"What color is the shape {word} the {b.shape}?", a.color, "color")
    return SceneQuestion(f"What shape is {word} the {b.shape}?", a.shape, "shape")


def plausible_answers(asked: SceneQuestion) -> tuple[str, ...]:
    """The answers that a question of its kind may have, the right one included."""
    match asked.kind:
        case "color":
            return COLORS
        case "shape":
            return SHAPES
        case "count":
            return ("1", "2", "3")
        case "exists" | "relation":
            return ("yes", "no")
        case "position":
            sides = ("left", "right")
            return sides if asked.answer in sides else ("top", "bottom")


def annotators(right: SceneQuestion, rng: random.Random, noise: float = 0.1) -> list[str]:
    """Ten answers as VQAv2 has them: each annotator errs with probability ``noise``."""
    wrong = [answer for answer in plausible_answers(right) if answer != right.answer]
    return [rng.choice(wrong) if rng.random() < noise else right.answer for _ in range(10)]


# --------------------------------------------------------------------------- web noise

_VAGUE = (
    "a picture of some shapes",
    "colorful shapes",
    "abstract picture",
    "nice image with a background",
    "shapes",
)
_BOILERPLATE = (
    "click to enlarge",
    "image may contain: shapes",
    "free shipping on orders over $50",
    "stock photo - all rights reserved",
    "download this free vector now",
)
_FRENCH = {
    "red": "rouge",
    "orange": "orange",
    "yellow": "jaune",
    "green": "vert",
    "cyan": "cyan",
    "blue": "bleu",
    "purple": "violet",
    "white": "blanc",
    "circle": "un cercle",
    "square": "un carré",
    "triangle": "un triangle",
    "star": "une étoile",
    "cross": "une croix",
    "ring": "un anneau",
}


def web_caption(scene: Scene, rng: random.Random) -> tuple[str, NoiseKind]:
    """What a web page might say beside the picture, and of which kind it is (for audits only)."""
    kind = rng.choices(list(NOISE), weights=list(NOISE.values()))[0]
    match kind:
        case "right":
            text = caption(scene, rng)
        case "other image":
            text = caption(sample_scene(rng), rng)
        case "vague":
            text = rng.choice(_VAGUE)
        case "file name":
            text = f"{rng.choice(('IMG', 'DSC', 'image'))}_{rng.randrange(10_000):04d}.jpg"
        case "boilerplate":
            text = rng.choice(_BOILERPLATE)
        case "truncated":
            whole = describe(scene)
            text = whole[: rng.randint(4, len(whole) * 2 // 3)].rstrip() + "..."
        case "other language":
            text = _join([f"{_FRENCH[t.shape]} {_FRENCH[t.color]}" for t in scene.things])
    if kind in ("right", "other image") and rng.random() < 0.3:
        text = text[0].upper() + text[1:] + "."
    return text, kind
