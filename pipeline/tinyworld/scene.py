"""The contents of a TinyWorld picture: one to three shapes in the quarters of a square.

Shapes and colours are distinct within a scene, so "the star" and "the red shape" name one object.
Every scene is drawn from a named random stream and its signature decides whether it may be shown in
training or only in evaluation: no evaluation scene is ever a training scene, in any picture of it.
"""

import hashlib
import random
from dataclasses import dataclass
from itertools import product
from typing import Literal

COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
QUARTERS = tuple(product(("top", "bottom"), ("left", "right")))

# Never shown outside the out-of-domain test set (as NoCaps' out-of-domain objects).
HELD_OUT_PAIRS = frozenset(
    {
        ("red", "ring"),
        ("orange", "star"),
        ("green", "cross"),
        ("cyan", "triangle"),
        ("blue", "square"),
        ("purple", "circle"),
    }
)

Domain = Literal["train", "eval", "out"]


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: a coloured shape in one quarter of the picture."""

    color: str
    shape: str
    size: str
    row: str  # "top" or "bottom"
    column: str  # "left" or "right"

    @property
    def pair(self) -> tuple[str, str]:
        return self.color, self.shape


@dataclass(frozen=True, slots=True)
class Scene:
    """The truth about one picture. ``things`` are in reading order."""

    things: tuple[Thing, ...]
    texture: str

    @property
    def signature(self) -> str:
        """The objects without the background, as text: equal for scenes that read the same."""
        return ";".join(f"{t.size} {t.color} {t.shape} {t.row} {t.column}" for t in self.things)

    def find(self, color: str, shape: str) -> Thing | None:
        """The one object of that colour and shape, if there is one."""
        return next((t for t in self.things if t.pair == (color, shape)), None)


def is_left_of(a: Thing, b: Thing) -> bool:
    return (a.column, b.column) == ("left", "right")


def is_above(a: Thing, b: Thing) -> bool:
    return (a.row, b.row) == ("top", "bottom")


def domain_of(scene: Scene) -> Domain:
    """``out`` with a held-out pair, else ``eval`` for one signature in eight, else ``train``."""
    if any(t.pair in HELD_OUT_PAIRS for t in scene.things):
        return "out"
    digest = hashlib.blake2b(scene.signature.encode(), digest_size=8).digest()
    return "eval" if int.from_bytes(digest, "big") % 8 == 0 else "train"


def stream(*name: object) -> random.Random:
    """An independent random stream per name, such as ``(seed, "web", 17)``; equal everywhere."""
    return random.Random("/".join(str(part) for part in name))


def sample_scene(rng: random.Random, domain: Domain = "train") -> Scene:
    """Draw one scene of ``domain``: one, two or three objects, equally often."""
    while True:
        count = rng.randint(1, 3)
        quarters = sorted(rng.sample(range(4), count))
        colors = rng.sample(COLORS, count)
        shapes = rng.sample(SHAPES, count)
        things = tuple(
            Thing(color, shape, rng.choice(SIZES), *QUARTERS[quarter])
            for color, shape, quarter in zip(colors, shapes, quarters, strict=True)
        )
        scene = Scene(things, rng.choice(TEXTURES))
        if domain_of(scene) == domain:
            return scene


def sample_distinct(rng: random.Random, domain: Domain, count: int) -> list[Scene]:
    """Draw ``count`` scenes that no caption with colours, shapes and places can confuse."""
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = sample_scene(rng, domain)
        scenes.setdefault(";".join(sorted(f"{t.color} {t.shape}" for t in scene.things)), scene)
    return list(scenes.values())
