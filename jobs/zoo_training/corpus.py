"""What TinyWorld's small language models read: text about training scenes, never a picture.

Three tasks, mixed: *reading* (what is said of a scene, a question, the answer), *rewriting* (what
is said of a scene, the beginning of another caption, its rest) and *captioning* (a caption's
beginning, its rest). What is said of the scene, the context, stands where stage 2 will put the
queries. A part of the contexts are *bundles*: each place of the sequence holds the sum of a few
word vectors, as one query may speak of a colour, a shape and a place at once; real language models
of billions of parameters accept such inputs, one of a million must have met them.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from modeling.prompts import CAPTION_FINETUNED, VQA_DECODER, VQA_ENCODER_DECODER
from pipeline.tinyworld.scene import SHAPES, Domain, Scene, Thing, sample_scene, stream
from pipeline.tinyworld.text import (
    QUESTION_KINDS,
    Question,
    caption,
    compositional,
    describe,
    question,
)

READING_KINDS = (*QUESTION_KINDS, "compositional")
PROMPTS = (VQA_ENCODER_DECODER, VQA_DECODER)
_PLACED = re.compile(rf"({'|'.join(SHAPES)}) in the (?:top|bottom) (?:left|right)")


@dataclass(frozen=True, slots=True)
class Context:
    """What is said of a scene: ``text``, or ``bundles`` of words to be summed."""

    text: str
    placed: frozenset[str]  # the shapes whose place is said
    bundles: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A context (may be empty), then turns of a prompt (may be empty) and what should follow it."""

    context: Context
    turns: tuple[tuple[str, str], ...]
    kind: str  # the kind of the first turn's question, "rewrite" or "caption"


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the tasks and of the contexts in one phase of the training."""

    reading: float = 0.5
    rewrite: float = 0.4
    bundles: float = 0.25  # of the contexts
    plain: float = 0.5  # of the other contexts: the complete description and nothing else
    kinds: tuple[str, ...] = READING_KINDS
    full: float = 0.3  # of the rewritten captions: complete descriptions
    short: float = 0.0  # of the text contexts and their rewriting: only colours and shapes
    turns: int = 1  # questions on one context, for models that read on after an answer


# ---------------------------------------------------------------------------- contexts


def _shuffled(scene: Scene, rng: random.Random) -> Scene:
    return Scene(tuple(rng.sample(scene.things, len(scene.things))), scene.texture)


def text_context(scene: Scene, rng: random.Random, plain: float, short: float = 0.0) -> Context:
    """True captions: the complete one in any order (``plain`` of the time), others, or two."""
    if rng.random() < short:
        named = [f"{thing.color} {thing.shape}" for thing in _shuffled(scene, rng).things]
        return Context(" and ".join(f"a {name}" for name in named), frozenset())
    text = describe(_shuffled(scene, rng))
    if rng.random() >= plain:
        style = rng.random()
        if style < 0.3:
            text = f"{text} on a {scene.texture} background"
        elif style < 0.6:
            text = caption(scene, rng)
        else:
            both = rng.sample([text, caption(scene, rng)], 2)
            text = rng.choice((". ", " ", " ")).join(both)
        if rng.random() < 0.2:
            text = text[0].upper() + text[1:]
    if rng.random() < 0.4:
        text += "."
    return Context(text, frozenset(_PLACED.findall(text)))


def one_sided_context(scene: Scene, asked: Question, rng: random.Random) -> Context:
    """Every place is said but that of the relation's object, so that it cannot mislead."""
    placed = frozenset(t.shape for t in scene.things if not asked.text.endswith(f"{t.shape}?"))
    items = []
    for thing in _shuffled(scene, rng).things:
        place = f" in the {thing.row} {thing.column}" if thing.shape in placed else ""
        items.append(f"a {thing.size} {thing.color} {thing.shape}{place}")
    return Context(" and ".join(items), placed)


def bundle_context(scene: Scene, rng: random.Random) -> Context:
    """Every fact of the scene in bundles of one to five words around an object, in any order."""
    bundles = [bundle for thing in scene.things for bundle in _bundles(thing, rng)]
    bundles += [(scene.texture, "background")] * (rng.random() < 0.5)
    rng.shuffle(bundles)
    return Context("", frozenset(thing.shape for thing in scene.things), tuple(bundles))


def _bundles(thing: Thing, rng: random.Random) -> list[tuple[str, ...]]:
    """The facts of one object cut into groups, each with its shape or, after that, its colour."""
    facts = [thing.size, thing.row, thing.column]
    rng.shuffle(facts)
    cuts = sorted(rng.sample(range(4), rng.randint(0, 2)))
    groups = [facts[a:b] for a, b in zip([0, *cuts], [*cuts, 3], strict=True)]
    whole = [thing.color, thing.shape]
    keyed = [rng.choice((whole, [thing.color], [thing.shape])) for _ in groups]
    keyed[rng.randrange(len(keyed))] = whole  # somewhere colour and shape stand together
    return [(*key, *group) for key, group in zip(keyed, groups, strict=True)]


# ---------------------------------------------------------------------------- examples


def answerable(asked: Question, kind: str, scene: Scene, context: Context) -> bool:
    """Whether the context says what the answer needs: places for places and relations."""
    if kind == "compositional":
        return all(thing.shape in context.placed for thing in scene.things)
    if kind.endswith("relation") or kind == "position":
        named = [shape for shape in SHAPES if re.search(rf"\b{shape}\b", asked.text)]
        return all(shape in context.placed for shape in named)
    return True


def ask(scene: Scene, context: Context, kind: str, rng: random.Random) -> Question | None:
    """A question of ``kind`` that the context answers, or None.

    Relations are slow to learn from nothing: the answer is an exclusive or of word and place, and
    the two objects' places pull against each other. So they have easier kinds to begin with: in
    "plain" and "one-sided" ones the object's place is not said, and the plain ones ask for above
    and left only, where the subject's place alone decides.
    """
    make: Callable[[], Question | None] = (
        (lambda: compositional(scene, rng))
        if kind == "compositional"
        else (lambda: question(scene, kind.rpartition(" ")[2], rng))  # type: ignore[arg-type]
    )
    asked = make()
    if kind == "plain relation" and asked and re.search("below|right of", asked.text):
        return None
    return asked if asked and answerable(asked, kind, scene, context) else None


def _halve(text: str, rng: random.Random) -> tuple[str, str]:
    """A caption cut where stage 2's prefix language modelling may cut it, or before it begins."""
    choice = rng.random()
    if choice < 0.25:
        return "", text
    if choice < 0.3:
        return CAPTION_FINETUNED, text
    pieces = text.split(" ")
    cut = rng.randint(1, max(1, len(pieces) // 2))
    return " ".join(pieces[:cut]), " ".join(pieces[cut:])


def _retold(scene: Scene, rng: random.Random, mix: Mix) -> str:
    """Another caption of the scene, as short as the mix's contexts are."""
    if rng.random() < mix.short:
        return text_context(scene, rng, plain=1.0, short=1.0).text.removesuffix(".")
    return describe(_shuffled(scene, rng)) if rng.random() < mix.full else caption(scene, rng)


def example(rng: random.Random, mix: Mix, domain: Domain = "train") -> Example:
    """One example of the mix; scenes with a question that cannot be asked are drawn again."""
    task = rng.random()
    if task >= mix.reading + mix.rewrite:
        turn = _halve(caption(sample_scene(rng, domain), rng), rng)
        return Example(Context("", frozenset()), (turn,), "caption")
    kinds = [rng.choice(mix.kinds) for _ in range(mix.turns)]
    while True:
        scene = sample_scene(rng, domain)
        bundled = rng.random() < mix.bundles
        context = (
            bundle_context(scene, rng)
            if bundled
            else text_context(scene, rng, mix.plain, mix.short)
        )
        if task >= mix.reading:
            told = _retold(scene, rng, mix)
            return Example(context, (_halve(told, rng),), "rewrite")
        asked = [ask(scene, context, kind, rng) for kind in kinds]
        if kinds[0] == "one-sided relation" and len(scene.things) < 3:
            continue  # the one place that is said would need no looking up
        if asked[0] is not None:
            if kinds[0] in ("plain relation", "one-sided relation"):
                context = one_sided_context(scene, asked[0], rng)
                asked = asked[:1]
            turns = tuple((rng.choice(PROMPTS).format(q.text), q.answer) for q in asked if q)
            return Example(context, turns, kinds[0])


def pool(name: str, count: int, mix: Mix, domain: Domain = "train") -> list[Example]:
    """``count`` examples of the named stream, equal wherever they are drawn."""
    rng = stream("zoo", "language", name)
    return [example(rng, mix, domain) for _ in range(count)]


def reading_test(count: int, domain: Domain = "eval") -> list[Example]:
    """Held-out questions, ``count`` of each kind, on contexts of text only."""
    tests: list[Example] = []
    for kind in READING_KINDS:
        mix = Mix(reading=1.0, rewrite=0.0, bundles=0.0, kinds=(kind,))
        tests += pool(f"test {kind}", count, mix, domain)
    return tests
