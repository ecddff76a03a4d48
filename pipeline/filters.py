"""Filters: keep a sample (None) or drop it with a counted reason. Nothing here decodes."""

import math
from dataclasses import dataclass
from typing import Any

from pipeline.images import MAX_PIXELS, ImageHeader
from pipeline.sample import Sample


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """What is dropped before any model runs. The defaults drop only what cannot be used.

    Attributes:
        min_side: shorter side in pixels.
        max_aspect: longer side / shorter side.
        max_pixels: width x height; such images are refused from their header.
        max_punsafe: of LAION's NSFW column ``punsafe``, where a sample has one; the authors
            dropped what was over 0.1.
        min_caption, max_caption: web caption length in characters. Human captions are not cut.
    """

    min_side: int = 1
    max_aspect: float = math.inf
    max_pixels: int = MAX_PIXELS
    max_punsafe: float = 0.1
    min_caption: int = 1
    max_caption: int = 2_000

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise ValueError(f"max_pixels={self.max_pixels}: must be in 1..{MAX_PIXELS}")
        if self.max_aspect < 1:
            raise ValueError(f"max_aspect={self.max_aspect}: must be at least 1")
        if not 0 <= self.min_caption <= self.max_caption:
            raise ValueError(
                f"min_caption={self.min_caption} must be in 0..max_caption={self.max_caption}"
            )


def check_sample(config: FilterConfig, sample: Sample) -> str | None:
    """The reason to drop a sample by its caption and fields, or None."""
    punsafe = _number(sample.meta.get("punsafe"))
    if punsafe is not None and punsafe > config.max_punsafe:
        return "unsafe"
    length = len(sample.caption.strip())
    if length < config.min_caption:
        return "caption_too_short"
    if length > config.max_caption:
        return "caption_too_long"
    return None


def check_header(config: FilterConfig, header: ImageHeader) -> str | None:
    """The reason to drop an image by its header, or None."""
    short, long = sorted((header.width, header.height))
    if short < config.min_side:
        return "image_too_small"
    if long > short * config.max_aspect:
        return "image_too_elongated"
    return None


def _number(value: Any) -> float | None:
    """A column that parquet or json gave as number, text or nothing."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
