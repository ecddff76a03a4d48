"""LLaVA's conversation files, read and checked: a list of ``{id, image?, conversations}``.

    told = read_conversations(Path("llava_instruct_150k.json"), Path("coco/train2014"))
    told[0].turns  # (("human", "<image>\\nWhat is this?"), ("gpt", "A bench."))

``conversations`` is a list of ``{"from": "human" | "gpt", "value": text}``. The files of LLaVA
(arXiv:2304.08485) and of its later versions have this form. Images are files in a folder; COCO's
are also found where the folder has the names of 2014 (``COCO_train2014_000000000009.jpg``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.filenames import is_unsafe
from pipeline.text import TextError, has_lone_surrogate, load_json

IMAGE = "<image>"
HUMAN, MODEL = "human", "gpt"
COCO_PREFIXES = ("COCO_train2014_", "COCO_val2014_")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation, checked.

    Attributes:
        id: name in its file.
        image: image file; None for text alone. It may be missing: the loader tells of that.
        turns: (``human`` or ``gpt``, text) in turn, the human first, the model last. The first text
            holds ``<image>`` once where there is an image, and nothing else does.
    """

    id: str
    image: Path | None
    turns: tuple[tuple[str, str], ...]


def read_conversations(path: Path, images: Path | None = None) -> list[Conversation]:
    """Read a file of conversations.

    Args:
        path: a JSON file.
        images: folder that the names of images are relative to; None: the file's own.

    Raises:
        ValueError: the file cannot be read, holds no conversation, one of them is malformed (the
            message names its id), or none of its images is in the folder.
    """
    try:
        records = load_json(path.read_bytes(), slim=_slim)
    except (OSError, TextError) as broken:
        raise ValueError(f"conversations {path} cannot be read ({broken})") from broken
    if not isinstance(records, list) or not records:
        raise ValueError(
            f"conversations {path}: no list of them in it; give a JSON file with "
            "[{id, image, conversations: [{from, value}]}]"
        )
    find = _finder(path.parent if images is None else images)
    told = [_conversation(record, number, path, find) for number, record in enumerate(records)]
    named = [one.image for one in told if one.image is not None]
    if named and not any(image.is_file() for image in named[:1000]):
        raise ValueError(
            f"conversations {path}: {named[0]} is not there, nor are the images of the "
            f"conversations behind it; give their folder, as in {path}:FOLDER"
        )
    return told


def _slim(record: dict[str, Any]) -> dict[str, Any]:
    """The fields that are read; some files hold boxes and captions besides."""
    kept = ("id", "image", "conversations", "from", "value")
    return {name: record[name] for name in kept if name in record}


def _conversation(
    record: Any, number: int, path: Path, find: Callable[[str], Path]
) -> Conversation:
    name = str(record.get("id", number)) if isinstance(record, dict) else str(number)
    try:
        image = record.get("image") if isinstance(record, dict) else None
        if image is not None and (not isinstance(image, str) or is_unsafe(image)):
            raise ValueError(f"its image {str(image)[:80]!r} is no file name inside the folder")
        turns = _turns(record.get("conversations") if isinstance(record, dict) else None)
        _check_images(turns, image is not None)
    except ValueError as wrong:
        raise ValueError(f"conversations {path}: sample {name}: {wrong}") from wrong
    return Conversation(name, None if image is None else find(image), turns)


def _turns(told: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(told, list) or not told:
        raise ValueError("it has no turns; give conversations: [{from, value}]")
    turns = []
    for number, turn in enumerate(told):
        role = turn.get("from") if isinstance(turn, dict) else None
        text = turn.get("value") if isinstance(turn, dict) else None
        if role not in (HUMAN, MODEL) or not isinstance(text, str):
            raise ValueError(f"turn {number} is no {{from: human or gpt, value: text}}")
        if has_lone_surrogate(text):
            raise ValueError(f"turn {number} is not UTF-8")
        if role != (HUMAN, MODEL)[number % 2]:
            raise ValueError(f"turn {number} is of {role}; human begins, and the two alternate")
        turns.append((role, text))
    if len(turns) % 2:
        raise ValueError("it ends with a turn of human, which nothing answers; take that turn out")
    return tuple(turns)


def _check_images(turns: tuple[tuple[str, str], ...], pictured: bool) -> None:
    """Check that ``<image>`` is in the first turn where there is an image, and nowhere else."""
    for number, (_, text) in enumerate(turns):
        count, allowed = text.count(IMAGE), int(pictured and number == 0)
        if count > allowed:
            what = "one is allowed" if allowed else "none is allowed"
            where = "" if pictured else ", since the sample names no image"
            raise ValueError(f"turn {number} has {count} {IMAGE}, {what} there{where}")
        if count < allowed:
            raise ValueError(f"it names an image, but its first turn has no {IMAGE}")


def _finder(folder: Path) -> Callable[[str], Path]:
    """A function from an image's name to its file; folders are listed once, not asked by file."""

    @cache
    def names(place: Path) -> frozenset[str]:
        return frozenset(file.name for file in place.iterdir()) if place.is_dir() else frozenset()

    def find(name: str) -> Path:
        path = folder / name
        there = names(path.parent)
        tried = (path.name, *(prefix + path.name for prefix in COCO_PREFIXES))
        return path.with_name(next((one for one in tried if one in there), path.name))

    return find
