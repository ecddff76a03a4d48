"""TinyWorld pictures: a scene drawn with anti-aliasing on a dark, textured background.

Everything that varies (place, angle, size, tint, stripes) comes from the given random stream in
small steps, so that the masks, drawn once at four times the size, are kept and reused.
"""

import io
import math
import random
from functools import lru_cache

from PIL import Image, ImageDraw

from pipeline.tinyworld.scene import Scene, Thing

IMAGE_SIZE = 64  # pixels; four quarters of 32
QUARTER = IMAGE_SIZE // 2
JPEG_QUALITY = 92
_OVERSAMPLE = 4
_RADIUS = {"small": 7.5, "large": 13.0}
_JITTER = 3  # pixels off the middle of the quarter, each way
_MAX_ANGLE = 9  # degrees; a square must not pass for anything else
_TINT = 12  # each colour channel, each way
_RGB = {
    "red": (214, 34, 44),
    "orange": (246, 132, 22),
    "yellow": (250, 226, 54),
    "green": (42, 172, 66),
    "cyan": (74, 216, 226),
    "blue": (52, 84, 236),
    "purple": (170, 60, 204),
    "white": (242, 242, 242),
}

Point = tuple[float, float]


def _around(centre: float, radius: float, angle: float) -> Point:
    """The point at ``angle`` degrees clockwise from the top of a circle."""
    turn = math.radians(angle)
    return centre + radius * math.sin(turn), centre - radius * math.cos(turn)


def _outline(shape: str, centre: float, radius: float, angle: float) -> list[Point]:
    """The corners of a polygonal shape of about the same weight as a circle of ``radius``."""
    polar: list[tuple[float, float]]
    match shape:
        case "square":
            polar = [(1.2 * radius, 45 + 90 * i) for i in range(4)]
        case "triangle":
            polar = [(1.2 * radius, 120 * i) for i in range(3)]
        case "star":
            polar = [(radius * (0.48 if i % 2 else 1.2), 36 * i) for i in range(10)]
        case "cross":
            arm, turn = math.hypot(1.1, 0.34) * radius, math.degrees(math.atan2(0.34, 1.1))
            inner = math.hypot(0.34, 0.34) * radius
            polar = [
                (r, 90 * i + t)
                for i in range(4)
                for r, t in ((arm, -turn), (arm, turn), (inner, 45))
            ]
        case _:
            raise AssertionError(shape)
    return [_around(centre, r, a + angle) for r, a in polar]


@lru_cache(maxsize=4096)
def _shape_mask(shape: str, size: str, scale: int, angle: int) -> Image.Image:
    """An 8-bit coverage mask of one quarter and its margin; ``scale`` in hundredths."""
    side = (QUARTER + 4 * _JITTER) * _OVERSAMPLE
    radius = _RADIUS[size] * _OVERSAMPLE * scale / 100
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    centre = side / 2
    if shape in ("circle", "ring"):
        draw.ellipse([centre - radius, centre - radius, centre + radius, centre + radius], fill=255)
        if shape == "ring":
            hole = radius * 0.56
            draw.ellipse([centre - hole, centre - hole, centre + hole, centre + hole], fill=0)
    else:
        draw.polygon(_outline(shape, centre, radius, angle), fill=255)
    return mask.reduce(_OVERSAMPLE)


@lru_cache(maxsize=1024)
def _texture_mask(texture: str, angle: int, period: int, phase: int) -> Image.Image:
    """Coverage of the second background colour: stripes, or a grid of dots."""
    side, step = IMAGE_SIZE * _OVERSAMPLE, period * _OVERSAMPLE
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    across, along = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    offsets = range(-side + phase * _OVERSAMPLE, side, step)
    middle = side / 2
    for u in offsets:
        if texture == "striped":
            ends = [
                (middle + u * across - v * along, middle + u * along + v * across)
                for v in (-side, side)
            ]
            draw.line(ends, fill=255, width=step // 3)
            continue
        for v in offsets:
            x, y = middle + u * across - v * along, middle + u * along + v * across
            dot = step / 5
            draw.ellipse([x - dot, y - dot, x + dot, y + dot], fill=255)
    return mask.reduce(_OVERSAMPLE)


def _tinted(rgb: tuple[int, int, int], rng: random.Random) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, c + rng.randint(-_TINT, _TINT))) for c in rgb)
    return red, green, blue


def _background(texture: str, rng: random.Random) -> Image.Image:
    dark = tuple(rng.randint(8, 44) for _ in range(3))
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), dark)
    angle, period, phase = 15 * rng.randrange(12), rng.choice((7, 8, 9)), rng.randrange(7)
    lift = rng.randint(34, 46)
    if texture != "plain":
        lighter = tuple(c + lift for c in dark)
        image.paste(lighter, (0, 0), _texture_mask(texture, angle, period, phase))
    return image


def _draw(image: Image.Image, thing: Thing, rng: random.Random) -> None:
    scale, angle = (
        rng.choice((92, 96, 100, 104, 108)),
        rng.randrange(-_MAX_ANGLE, _MAX_ANGLE + 1, 3),
    )
    mask = _shape_mask(thing.shape, thing.size, scale, angle)
    margin = (mask.width - QUARTER) // 2
    left = (thing.column == "right") * QUARTER - margin + rng.randint(-_JITTER, _JITTER)
    top = (thing.row == "bottom") * QUARTER - margin + rng.randint(-_JITTER, _JITTER)
    image.paste(_tinted(_RGB[thing.color], rng), (left, top), mask)


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """One of the many pictures of ``scene``: RGB, 64 × 64 pixels."""
    image = _background(scene.texture, rng)
    for thing in scene.things:
        _draw(image, thing, rng)
    return image


def jpeg(image: Image.Image) -> bytes:
    """The picture as JPEG with full colour resolution: the same bytes for the same picture."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()
