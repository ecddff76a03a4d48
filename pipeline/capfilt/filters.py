"""Filters that keep a sample (None) or give the reason to drop it. Nothing here decodes."""

import functools
import math
import unicodedata
from dataclasses import dataclass
from typing import Any

from pipeline.images import MAX_PIXELS, ImageHeader
from pipeline.sample import Sample

# Unicode's own names of scripts, as the names of its letters begin.
SCRIPTS = (
    *("ARABIC", "ARMENIAN", "BENGALI", "CJK", "CYRILLIC", "DEVANAGARI", "ETHIOPIC", "GEORGIAN"),
    *("GREEK", "GUJARATI", "GURMUKHI", "HANGUL", "HEBREW", "HIRAGANA", "KANNADA", "KATAKANA"),
    *("KHMER", "LAO", "LATIN", "MALAYALAM", "MYANMAR", "SINHALA", "TAMIL", "TELUGU", "THAI"),
)
_LANGUAGE_COLUMNS = ("LANGUAGE", "language", "lang")  # LAION-2B-multi; others
_NSFW_COLUMNS = ("NSFW", "nsfw")
SAFETY_COLUMNS = frozenset(("punsafe", *_NSFW_COLUMNS))
"""The fields of a sample that the filters of unsafe images read."""


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """Limits that inputs must keep, applied before any model runs.

    The defaults drop unsafe images and inputs that cannot be used. Captions that people wrote pass
    the filters of captions; of several other captions, those that pass are used. A sample without
    the column that a filter reads passes this filter, and is counted.

    Attributes:
        min_side: smallest shorter side in pixels.
        max_aspect: largest ratio of the longer side to the shorter one.
        max_pixels: largest width x height; larger images are refused from their header.
        max_punsafe: largest value of LAION's column punsafe, the probability of an unsafe image;
            the authors dropped what was over 0.1.
        drop_nsfw: values of LAION-400M's column NSFW (UNLIKELY, UNSURE, NSFW) that drop a sample.
        min_similarity: smallest value of LAION's column similarity.
        languages: codes to keep (en; zh keeps zh-Latn too) of the column LANGUAGE, language or
            lang; none keeps all.
        scripts: Unicode's names of scripts, such as LATIN or CYRILLIC, of which the letters of a
            web caption must be; none keeps all. A caption without any letter stays.
        min_script: smallest share of a caption's letters that must be of these scripts.
        min_caption: smallest length of a web caption in characters.
        max_caption: largest length of a web caption in characters.
        unique: whether an image is dropped whose bytes an earlier image of the plan has, in any
            shard (``pipeline.capfilt.duplicates``).
    """

    min_side: int = 1
    max_aspect: float = math.inf
    max_pixels: int = MAX_PIXELS
    max_punsafe: float = 0.1
    drop_nsfw: tuple[str, ...] = ("NSFW",)
    min_similarity: float = -1.0
    languages: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()
    min_script: float = 0.5
    min_caption: int = 1
    max_caption: int = 2_000
    unique: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise ValueError(f"max_pixels={self.max_pixels}: must be in 1..{MAX_PIXELS}")
        if self.max_aspect < 1:
            raise ValueError(f"max_aspect={self.max_aspect}: must be at least 1")
        if not 0 <= self.min_caption <= self.max_caption:
            raise ValueError(
                f"min_caption={self.min_caption} must be in 0..max_caption={self.max_caption}"
            )
        unknown = sorted(set(self.scripts) - set(SCRIPTS))
        if unknown:
            raise ValueError(f"scripts: {', '.join(unknown)}: choose from {', '.join(SCRIPTS)}")
        if not 0 <= self.min_script <= 1:
            raise ValueError(f"min_script={self.min_script}: must be in 0..1")


def check_sample(config: FilterConfig, sample: Sample) -> str | None:
    """The reason to drop a sample by its fields, or by all of its captions, or None."""
    reason = _check_columns(config, sample.meta)
    if reason or passing_captions(config, sample):
        return reason
    return _check_caption(config, sample.caption)


def passing_captions(config: FilterConfig, sample: Sample) -> tuple[str, ...]:
    """The captions of a sample that the filters of captions keep: all that people wrote."""
    if sample.human:
        return sample.captions
    return tuple(text for text in sample.captions if _check_caption(config, text) is None)


def missing_columns(config: FilterConfig, sample: Sample) -> tuple[str, ...]:
    """The columns that a filter would have looked at, had the sample had them.

    None for a sample whose captions people wrote: such sources have no columns.
    """
    if sample.human:
        return ()
    meta = sample.meta
    asked = {
        "punsafe": config.max_punsafe < 1 and _number(meta.get("punsafe")) is None,
        "NSFW": bool(config.drop_nsfw) and not _first(meta, _NSFW_COLUMNS),
        "similarity": config.min_similarity > -1 and _number(meta.get("similarity")) is None,
        "LANGUAGE": bool(config.languages) and not _first(meta, _LANGUAGE_COLUMNS),
    }
    return tuple(name for name, missing in asked.items() if missing)


def _check_columns(config: FilterConfig, meta: dict[str, Any]) -> str | None:
    punsafe = _number(meta.get("punsafe"))
    if punsafe is not None and punsafe > config.max_punsafe:
        return "unsafe"
    if config.drop_nsfw and _first(meta, _NSFW_COLUMNS) in config.drop_nsfw:
        return "unsafe"
    similarity = _number(meta.get("similarity"))
    if similarity is not None and similarity < config.min_similarity:
        return "low_similarity"
    language = _first(meta, _LANGUAGE_COLUMNS).lower()
    wanted = {code.lower() for code in config.languages}
    if wanted and language and not wanted & {language, language.partition("-")[0]}:
        return "language"
    return None


def _check_caption(config: FilterConfig, caption: str) -> str | None:
    length = len(caption.strip())
    if length < config.min_caption:
        return "caption_too_short"
    if length > config.max_caption:
        return "caption_too_long"
    if config.scripts and script_share(caption, config.scripts) < config.min_script:
        return "script"
    return None


def script_share(text: str, scripts: tuple[str, ...]) -> float:
    """The share of a text's letters that are of these scripts; 1 where it has no letter.

    >>> script_share("Москва 2020 x", ("LATIN",)) == 1 / 7
    True
    """
    found = [_script(character) for character in text if character.isalpha()]
    return sum(name in scripts for name in found) / len(found) if found else 1.0


@functools.lru_cache(maxsize=1 << 16)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0].partition("-")[0]


def _first(meta: dict[str, Any], columns: tuple[str, ...]) -> str:
    """The text in the first of these columns that has any."""
    return next((meta[name] for name in columns if isinstance(meta.get(name), str)), "")


def check_header(config: FilterConfig, header: ImageHeader) -> str | None:
    """The reason to drop an image by its header, or None."""
    short, long = sorted((header.width, header.height))
    if short < config.min_side:
        return "image_too_small"
    if long > short * config.max_aspect:
        return "image_too_elongated"
    return None


def _number(value: Any) -> float | None:
    """A column that parquet or json gave as number, text or nothing (NaN is nothing)."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    except OverflowError:  # an integer of hundreds of digits
        return math.inf if value > 0 else -math.inf
    return None if math.isnan(number) else number
