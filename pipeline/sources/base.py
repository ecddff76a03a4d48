"""What all sources share: input shards, listed items, and which names and texts are usable."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.sample import Rejected, Sample
from pipeline.text import check_caption, has_lone_surrogate

IMAGE_SUFFIXES = (
    *("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"),
    *("jpe", "jfif", "mpo", "apng", "avifs"),
)
"""Suffixes of the image files that the decoder takes, in lower case, without the dot."""
_MEMBER_SUFFIXES = IMAGE_SUFFIXES[:9]  # those that readers of tars know
TEXT_SUFFIXES = ("txt", "caption", "text")
IMAGE_FIELDS = (
    *("file", "file_name", "image", "path"),
    *("filepath", "filename", "file_path", "image_path", "img", "img_path"),
)
TEXT_FIELDS = ("caption", "text", "TEXT", "captions")


@dataclass(frozen=True, slots=True)
class Item:
    """One input of a listed source: the file, and what its list says about it.

    ``key`` is its name in the output, unique in the source.
    """

    file: str
    captions: tuple[str, ...]
    reason: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    key: str = ""


@dataclass(frozen=True, slots=True)
class InputShard:
    """A unit of work. ``etag`` changes when its content does; small enough to send around."""

    name: str
    size: int
    etag: str
    items: tuple[Item, ...] = ()


class Source(Protocol):
    """A set of input shards that can be read in any order, in any process."""

    @property
    def name(self) -> str: ...
    def shards(self) -> list[InputShard]: ...
    def reader(self) -> "Source": ...
    def read(self, shard: InputShard) -> Iterator[Sample | Rejected]: ...


def field_captions(record: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """The captions of a record, and "" or the reason why none of them can be used.

    Returns:
        All captions of a field that holds a text or a list of texts; with a reason
        (``pipeline.text.check_caption``) what is there, for showing only.
    """
    value = caption_field(record)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        checked = [check_caption(item) for item in value]
    else:
        checked = [check_caption(value)]
    good = tuple(text for text, reason in checked if not reason)
    if good:
        return good, ""
    return tuple(text for text, _ in checked if text), checked[0][1]


def caption_field(record: dict[str, Any]) -> Any:
    """What the first caption field of a record that has a value holds, or None."""
    value = next((record[name] for name in TEXT_FIELDS if record.get(name) not in (None, [])), None)
    return _told(record["conversations"]) if value is None and "conversations" in record else value


def _told(turns: Any) -> Any:
    """What LLaVA's ``conversations`` of one question and one answer say of the image.

    Those of several turns are talk about the image, not captions of it: they come back as they are.
    """
    if not isinstance(turns, list) or len(turns) != 2 or not isinstance(turns[1], dict):
        return turns
    told = turns[1].get("value")
    return told.replace("<image>", "").strip() if isinstance(told, str) else told


_SYSTEM_FOLDERS = ("__macosx", "@eadir", "$recycle.bin", "system volume information")
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")


def is_hidden(name: str) -> bool:
    """Whether a file is not the user's own but a file system's or a tool's.

    Args:
        name: a path with slashes, relative to the folder that was given or as a tar has it.

    Returns:
        True for a file or folder whose name starts with a dot (macOS's ``._1.jpg``,
        ``.DS_Store``), for what is in ``__MACOSX`` and the like, for ``Thumbs.db`` and the like.

    >>> [is_hidden(name) for name in ("a/._1.jpg", "__MACOSX/1.jpg", "./1.jpg", "../1.jpg")]
    [True, True, False, False]
    """
    *folders, base = name.lower().split("/")
    dotted = any(part.startswith(".") and part not in (".", "..") for part in (*folders, base))
    return dotted or base in _SYSTEM_FILES or any(part in _SYSTEM_FOLDERS for part in folders)


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image (``IMAGE_SUFFIXES``, in any case), not hidden."""
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES and not is_hidden(name)


def member_suffix(suffix: str) -> str:
    """The suffix under which an image file goes into a tar: its own where readers know it."""
    suffix = suffix.lower().removeprefix(".")
    return suffix if suffix in _MEMBER_SUFFIXES else "jpg"


def is_unsafe(name: str) -> bool:
    """Absolute, leaving its folder, not UTF-8, or with control characters."""
    return (
        name.rpartition("/")[2] in ("", ".")
        or name.startswith("/")
        or "\\" in name
        or ".." in name.split("/")
        or any(ord(character) < 32 for character in name)
        or has_lone_surrogate(name)
    )
