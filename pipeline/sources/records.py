"""Lists of images as people write them: which file a record names, and one item per image."""

import hashlib
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from cluster.storage.base import Storage
from cluster.storage.local import LocalStorage
from pipeline.sources.base import ListedImage

IMAGE_FIELDS = (
    *("file", "file_name", "image", "path"),
    *("filepath", "filename", "file_path", "image_path", "img", "img_path"),
)
"""Fields of a record that may name its image, in the order in which they are tried."""


def image_field(record: Any) -> str:
    """The image that a record names, as it is written there; "" where it names none.

    COCO's Karpathy split and others have a folder in ``filepath`` and the name in ``filename``.
    """
    if not isinstance(record, dict):
        return ""
    named = {name: record.get(name) for name in IMAGE_FIELDS}
    texts = {name: text for name, text in named.items() if isinstance(text, str) and text}
    if "filepath" in texts and "filename" in texts:
        return f"{texts['filepath']}/{texts['filename']}"
    return next(iter(texts.values()), "")


class ImageFolder:
    """The folder that a list's names are relative to.

    Args:
        pictures: the folder.
    """

    def __init__(self, pictures: Storage) -> None:
        self.url = pictures.url.rstrip("/")
        self.local = isinstance(pictures, LocalStorage)
        self._real = lru_cache(maxsize=1024)(os.path.realpath)

    def relative(self, name: str) -> str:
        """A name relative to the folder, with slashes, without ``./``.

        Args:
            name: relative or absolute, with slashes or Windows' backslashes, or a URL.

        Returns:
            The path as it is where it leads out of the folder (``is_unsafe`` says so then).
        """
        path = name.replace("\\", "/")
        if self.local:
            path = path.removeprefix("file://")
        full = path if path.startswith(f"{self.url}/") else posixpath.join(self.url, path)
        inside = self._inside(self.url, full)
        if not inside and self.local and posixpath.isabs(path) and "\0" not in path:
            folder, base = posixpath.split(path)
            inside = self._inside(self._real(self.url), posixpath.join(self._real(folder), base))
        return inside or path

    @staticmethod
    def _inside(root: str, full: str) -> str:
        """What is left of a path behind its root; "" where it leads elsewhere."""
        scheme, mark, path = full.rpartition("://")
        plain = scheme + mark + posixpath.normpath(path)
        return plain.removeprefix(f"{root}/") if plain.startswith(f"{root}/") else ""


def gather(lines: Iterable[tuple[str, ListedImage]]) -> Iterator[ListedImage]:
    """One item per image, in the order of their first lines.

    Args:
        lines: (place, item) of every line; an item whose file is its place names no image.

    Yields:
        For an image its captions of all lines, and the fields of its first line with those that
        only others have. A line without a usable caption is an item of its own, under its place,
        where the image has another line. So is a line that says nothing new, as a
        ``duplicate_key``.
    """
    found: dict[str, ListedImage] = {}
    first: dict[str, str] = {}
    for place, item in lines:
        before = found.get(item.file)
        first.setdefault(item.file, place)
        if before is None or item.reason == "unsafe_name":
            found[item.file if before is None else place] = item
        elif item.reason:
            found[place] = replace(item, file=place)
        elif before.reason:
            found[first[item.file]] = replace(before, file=first[item.file])
            found[item.file] = item
        elif set(item.captions) <= set(before.captions):
            found[place] = replace(item, file=place, reason="duplicate_key")
        else:
            captions, meta = before.captions + item.captions, {**item.meta, **before.meta}
            found[item.file] = replace(before, captions=captions, meta=meta)
    yield from found.values()


def name_items(items: Sequence[ListedImage]) -> tuple[ListedImage, ...]:
    """The same items with a key each; a file that was there before is a ``duplicate_key``.

    A key is the file's name without its suffix, dots replaced (``file_key``). Of several files that
    this would call the same, the first in the list gets that key and each other one a key with its
    suffix, or with digits of its name's hash where that is taken too.
    """
    taken = {file_key(item.file) for item in items}
    keys: dict[str, str] = {}
    used: set[str] = set()
    named = []
    for item in items:
        reason = item.reason
        if item.file in keys:
            reason = reason or "duplicate_key"
        else:
            key = file_key(item.file)
            keys[item.file] = key = _other_key(item.file, key, taken) if key in used else key
            used.add(key)
            taken.add(key)
        named.append(replace(item, key=keys[item.file], reason=reason))
    return tuple(named)


def file_key(file: str) -> str:
    """A key from a file's name: no extension, no dots (webdataset cuts the name at the first)."""
    folder, slash, base = file.rpartition("/")
    stem, dot, _ = base.rpartition(".")
    return folder + slash + (stem if dot and stem else base).replace(".", "_")


def _other_key(file: str, key: str, taken: set[str]) -> str:
    """A key for a file whose own one another file has: a function of the names alone."""
    suffixed = f"{key}_{file.rpartition('.')[2].lower().replace('/', '_')}"
    digest = hashlib.blake2b(file.encode("utf-8", "replace"), digest_size=16).hexdigest()
    hashed = (f"{key}_{digest[:length]}" for length in range(8, len(digest) + 1))
    return next(name for name in (suffixed, *hashed) if name not in taken)
