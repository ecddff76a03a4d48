"""Pictures and captions for the zoo's vision models, drawn afresh at every step.

A batch consists of groups: a scene, and others that differ from it in one attribute. Without such
hard negatives colours and places satisfy a contrastive loss, and shapes are never learned.
"""

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.pixels import CLIP_MEAN, CLIP_STD
from pipeline.tinyworld.render import jpeg, render
from pipeline.tinyworld.scene import (
    COLORS,
    QUARTERS,
    SHAPES,
    Domain,
    Scene,
    Thing,
    domain_of,
    sample_scene,
)
from pipeline.tinyworld.text import caption, describe, is_true, web_caption

_KINDS = ("color", "shape", "shape", "size", "place", "swap colors", "swap shapes")


def _changed(things: list[Thing], kind: str, rng: random.Random) -> list[Thing] | None:
    """``things`` with one change of ``kind``, or None where there is nothing to swap."""
    at = rng.randrange(len(things))
    thing = things[at]
    if kind.startswith("swap"):
        if len(things) < 2:
            return None
        other = rng.choice([i for i in range(len(things)) if i != at])
        name = kind.removeprefix("swap ").removesuffix("s")
        mine, theirs = getattr(thing, name), getattr(things[other], name)
        things[at] = replace(thing, **{name: theirs})
        things[other] = replace(things[other], **{name: mine})
    elif kind == "size":
        things[at] = replace(thing, size="small" if thing.size == "large" else "large")
    elif kind == "place":
        taken = {(t.row, t.column) for t in things}
        row, column = rng.choice([q for q in QUARTERS if q not in taken])
        things[at] = replace(thing, row=row, column=column)
    else:
        pool = COLORS if kind == "color" else SHAPES
        taken_words = {getattr(t, kind) for t in things}
        word = rng.choice([w for w in pool if w not in taken_words])
        things[at] = replace(thing, **{kind: word})
    return things


def vary(scene: Scene, rng: random.Random, domain: Domain | None = None) -> Scene:
    """A scene that differs from ``scene`` in one attribute, one place or one exchange.

    Args:
        scene: the first scene.
        rng: random numbers.
        domain: domain of the new scene; None: any. Most scenes have a neighbour in "train"; not
            every scene has one in "eval", and the search for it does not end.
    """
    while True:
        things = _changed(list(scene.things), rng.choice(_KINDS), rng)
        if things is None:
            continue
        ordered = sorted(things, key=lambda t: QUARTERS.index((t.row, t.column)))
        other = Scene(tuple(ordered), scene.texture)
        if domain in (None, domain_of(other)):
            return other


def draw(scene: Scene, rng: random.Random) -> Tensor:
    """A picture as it is read from a JPEG file: uint8 (3, H, W)."""
    with Image.open(io.BytesIO(jpeg(render(scene, rng)))) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)


def pixels(scenes: Sequence[Scene], rng: random.Random) -> Tensor:
    """Pictures normalised with CLIP's mean and standard deviation: float32 (B, 3, H, W)."""
    images_B3HW = torch.stack([draw(scene, rng) for scene in scenes]).float() / 255
    return (images_B3HW - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(
        3, 1, 1
    )


@dataclass(frozen=True)
class PairBatch:
    """A batch of pictures with texts.

    Attributes:
        scenes: the B scenes.
        images_B3HW: their pictures.
        texts: one caption of each.
        complete: the complete description of each.
        noise: web noise, wrong for every picture of the batch.
        true_BB: bool, whether text j is true of picture i.
    """

    scenes: list[Scene]
    images_B3HW: Tensor
    texts: list[str]
    complete: list[str]
    noise: list[str]
    true_BB: Tensor


def _truths(scenes: list[Scene], texts: list[str]) -> Tensor:
    """Whether text j is true of picture i (B, B). A caption names all objects of its scene."""
    pairs = [frozenset(t.pair for t in scene.things) for scene in scenes]
    true_BB = torch.eye(len(scenes), dtype=torch.bool)
    for j, text in enumerate(texts):
        for i, scene in enumerate(scenes):
            if i != j and pairs[j] <= pairs[i]:
                true_BB[i, j] = is_true(text, scene)
    return true_BB


def _noise(scenes: list[Scene], count: int, rng: random.Random) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        text, kind = web_caption(rng.choice(scenes), rng)
        if kind not in ("right", "other image"):
            found.append(text)
    return found


def pair_batch(rng: random.Random, groups: int, group: int, noise: int) -> PairBatch:
    """``groups`` × ``group`` pictures of training scenes; a group's members are nearly alike."""
    scenes: list[Scene] = []
    for _ in range(groups):
        first = sample_scene(rng)
        scenes += [first, *(vary(first, rng, "train") for _ in range(group - 1))]
    complete = [describe(scene) for scene in scenes]
    texts = [
        full if rng.random() < 0.25 else caption(scene, rng)
        for scene, full in zip(scenes, complete, strict=True)
    ]
    images_B3HW = pixels(scenes, rng)
    return PairBatch(
        scenes=scenes,
        images_B3HW=images_B3HW,
        texts=texts,
        complete=complete,
        noise=_noise(scenes, noise, rng),
        true_BB=_truths(scenes, texts),
    )
