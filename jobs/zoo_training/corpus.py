"""The texts that TinyWorld's small language models learn from: descriptions of training scenes.

Three tasks are mixed: *reading* (a context, a question, the answer), *rewriting* (a context, the
beginning of another caption, its rest) and *captioning* (a caption's beginning, its rest). The
context describes the scene, and stands where stage 2 will put the queries. Some contexts are
*bundles*: each position of the sequence holds the sum of a few word vectors, as one query may
stand for a colour, a shape and a place at once. Language models of billions of parameters accept
such inputs; one of a million must have met them in training.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from modeling.prompts import CAPTION_FINETUNED, VQA_DECODER, VQA_ENCODER_DECODER
from pipeline.tinyworld.scene import SHAPES, Domain, Scene, Thing, sample_scene, stream
from pipeline.tinyworld.text import (
    QUESTION_KINDS,
    SceneQuestion,
    caption,
    compositional,
    describe,
    question,
)

READING_KINDS = (*QUESTION_KINDS, "compositional")
PROMPTS = (VQA_ENCODER_DECODER, VQA_DECODER)
CHAT = "USER: {} ASSISTANT:"
"""A turn as Vicuna's layout has it; the answer and ``</s>`` follow."""
QUESTION_STARTS = ("Question", "USER")
"""Beginnings of the prompts that ask; what they ask is read and not learned."""
_PLACED = re.compile(rf"({'|'.join(SHAPES)}) in the (?:top|bottom) (?:left|right)")


@dataclass(frozen=True, slots=True)
class Context:
    """The description of a scene.

    Attributes:
        text: description in words; empty where there are bundles.
        placed: shapes whose place is told.
        bundles: words whose vectors are summed, for each position.
    """

    text: str
    placed: frozenset[str]
    bundles: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A context with prompts and their targets.

    Attributes:
        context: description of the scene; may be empty.
        turns: pairs of a prompt, which may be empty, and the text that should follow it.
        kind: kind of the first turn's question, or "rewrite", or "caption".
    """

    context: Context
    turns: tuple[tuple[str, str], ...]
    kind: str


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the tasks and of the contexts in one phase of the training.

    Attributes:
        reading: share of reading among the tasks.
        rewrite: share of rewriting among the tasks; the rest is captioning.
        bundles: share of bundles among the contexts.
        plain: share of plain complete descriptions among the other contexts.
        kinds: kinds of questions, drawn with equal chances; a kind may be named several times.
        full: share of complete descriptions among the rewritten captions.
        short: share of texts with colours and shapes only, among text contexts and rewriting.
        turns: questions on one context, for models that read on after an answer.
        prompts: prompts of the questions, drawn with equal chances.
    """

    reading: float = 0.5
    rewrite: float = 0.4
    bundles: float = 0.25
    plain: float = 0.5
    kinds: tuple[str, ...] = READING_KINDS
    full: float = 0.3
    short: float = 0.0
    turns: int = 1
    prompts: tuple[str, ...] = PROMPTS


# ---------------------------------------------------------------------------- contexts


def _shuffled(scene: Scene, rng: random.Random) -> Scene:
    return Scene(tuple(rng.sample(scene.things, len(scene.things))), scene.texture)


def text_context(scene: Scene, rng: random.Random, plain: float, short: float = 0.0) -> Context:
    """A context of true captions.

    Args:
        scene: the scene.
        rng: random numbers.
        plain: share of contexts that are the complete caption, in any order; the others have a
            background, are another caption, or are two captions.
        short: share of contexts with colours and shapes only.
    """
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


def one_sided_context(scene: Scene, asked: SceneQuestion, rng: random.Random) -> Context:
    """A context that tells every place except that of the relation's object."""
    placed = frozenset(t.shape for t in scene.things if not asked.text.endswith(f"{t.shape}?"))
    told = []
    for thing in _shuffled(scene, rng).things:
        place = f" in the {thing.row} {thing.column}" if thing.shape in placed else ""
        told.append(f"a {thing.size} {thing.color} {thing.shape}{place}")
    return Context(" and ".join(told), placed)


def bundle_context(scene: Scene, rng: random.Random) -> Context:
    """A context of every fact of the scene, in bundles of one to five words, in any order."""
    bundles = [bundle for thing in scene.things for bundle in _bundles(thing, rng)]
    bundles += [(scene.texture, "background")] * (rng.random() < 0.5)
    rng.shuffle(bundles)
    return Context("", frozenset(thing.shape for thing in scene.things), tuple(bundles))


def _bundles(thing: Thing, rng: random.Random) -> list[tuple[str, ...]]:
    """The facts of one object in groups, each with its colour or its shape or both."""
    facts = [thing.size, thing.row, thing.column]
    rng.shuffle(facts)
    cuts = sorted(rng.sample(range(4), rng.randint(0, 2)))
    groups = [facts[a:b] for a, b in zip([0, *cuts], [*cuts, 3], strict=True)]
    whole = [thing.color, thing.shape]
    keyed = [rng.choice((whole, [thing.color], [thing.shape])) for _ in groups]
    keyed[rng.randrange(len(keyed))] = whole  # somewhere colour and shape stand together
    return [(*key, *group) for key, group in zip(keyed, groups, strict=True)]


# ---------------------------------------------------------------------------- examples


def answerable(asked: SceneQuestion, kind: str, scene: Scene, context: Context) -> bool:
    """Whether the context tells the facts that the answer needs: places for some questions."""
    if kind == "compositional":
        return all(thing.shape in context.placed for thing in scene.things)
    if kind.endswith("relation") or kind == "position":
        named = [shape for shape in SHAPES if re.search(rf"\b{shape}\b", asked.text)]
        return all(shape in context.placed for shape in named)
    return True


def ask(scene: Scene, context: Context, kind: str, rng: random.Random) -> SceneQuestion | None:
    """A question of ``kind`` that the context answers, or None.

    Relations are slow to learn from nothing: the answer is an exclusive or of word and place, and
    the gradients of the two objects' places oppose each other. So easier kinds come first: "plain"
    and "one-sided" relations do not tell the object's place, and plain ones ask for above and left
    only, where the subject's place alone decides.
    """
    make: Callable[[], SceneQuestion | None] = (
        (lambda: compositional(scene, rng))
        if kind == "compositional"
        else (lambda: question(scene, kind.rpartition(" ")[2], rng))  # type: ignore[arg-type]
    )
    asked = make()
    if kind == "plain relation" and asked and re.search("below|right of", asked.text):
        return None
    return asked if asked and answerable(asked, kind, scene, context) else None


def _halve(text: str, rng: random.Random) -> tuple[str, str]:
    """A prompt and a target: a caption cut as stage 2's prefix language modelling may cut it."""
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
            turns = tuple((rng.choice(mix.prompts).format(q.text), q.answer) for q in asked if q)
            return Example(context, turns, kinds[0])


def pool(name: str, count: int, mix: Mix, domain: Domain = "train") -> list[Example]:
    """``count`` examples of the named stream of random numbers."""
    rng = stream("zoo", "language", name)
    return [example(rng, mix, domain) for _ in range(count)]


def reading_test(count: int, domain: Domain = "eval") -> list[Example]:
    """Held-out questions, ``count`` of each kind, on contexts of text only."""
    tests: list[Example] = []
    for kind in READING_KINDS:
        mix = Mix(reading=1.0, rewrite=0.0, bundles=0.0, kinds=(kind,))
        tests += pool(f"test {kind}", count, mix, domain)
    return tests
