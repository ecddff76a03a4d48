"""Image files and a list of their captions; the list itself as JSONL."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.storage import Storage
from pipeline.sample import Rejected, Sample, make_uid
from pipeline.source_base import (
    IMAGE_FIELDS,
    TEXT_FIELDS,
    InputShard,
    Item,
    Source,
    field_captions,
    is_image,
    is_unsafe,
    member_suffix,
)


@dataclass(frozen=True, slots=True)
class ListSource:
    """Image files in a folder, and a list of their captions."""

    name: str
    storage: Storage
    items: tuple[Item, ...]
    shard_size: int
    human: bool

    def shards(self) -> list[InputShard]:
        """Cuts of ``shard_size`` items in the list's order; the etag is of the list's content."""
        cuts = range(0, len(self.items), self.shard_size)
        return [
            self._shard(number, self.items[first : first + self.shard_size])
            for number, first in enumerate(cuts)
        ]

    def _shard(self, number: int, items: tuple[Item, ...]) -> InputShard:
        content = repr([(i.file, i.captions, i.reason) for i in items]).encode("utf-8", "replace")
        etag = hashlib.sha256(content).hexdigest()[:32]
        return InputShard(f"part-{number:05d}", len(items), etag, items)

    def reader(self) -> Source:
        """The same without the list, to send around: each shard carries its own part."""
        return replace(self, items=())

    def read(self, shard: InputShard) -> Iterator[Sample | Rejected]:
        """A row for every item."""
        seen: set[str] = set()
        for item in shard.items:
            key = _file_key(item.file)
            reason = item.reason or ("duplicate_key" if key in seen else "")
            seen.add(key)
            yield self._sample(shard.name, item, key, reason)

    def _sample(self, shard: str, item: Item, key: str, reason: str) -> Sample | Rejected:
        uid = make_uid(self.name, shard, key)
        caption = item.captions[0] if item.captions else ""
        image = b""
        if not reason:
            try:
                image = self.storage.read(item.file)
            except FileNotFoundError:
                reason = "missing_file"
            except OSError:
                reason = "unreadable_file"
        if reason:
            return Rejected(uid, key, self.name, shard, reason, caption)
        ext = member_suffix(Path(item.file).suffix)
        return Sample(
            uid, key, self.name, shard, image, caption, item.captions, item.meta, ext, self.human
        )


def _file_key(file: str) -> str:
    """A key from a file's name: no extension, no dots (webdataset cuts the name at the first)."""
    folder, slash, base = file.rpartition("/")
    stem, dot, _ = base.rpartition(".")
    return folder + slash + (stem if dot and stem else base).replace(".", "_")


def read_jsonl(path: Path, url: str, pictures: Storage) -> Iterator[Item]:
    """The lines of a JSONL, then the images of the folder that no line names."""
    named: set[str] = set()
    usable = False
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            item = _line_item(line, number)
            usable = usable or not item.file.startswith(_LINE)
            named.add(item.file)
            yield item
    if not usable:
        raise ValueError(
            f"input {url!r}: no line has an image field; expected one of "
            f"{', '.join(IMAGE_FIELDS)} and one of {', '.join(TEXT_FIELDS)}"
        )
    for file in sorted(image_files(pictures) - named):
        yield Item(file, (), "no_line")


_LINE = "(line "


def _line_item(line: bytes, number: int) -> Item:
    place = f"{_LINE}{number:09d})"
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Item(place, (), "line_not_utf8")
    except (json.JSONDecodeError, RecursionError):
        return Item(place, (), "bad_json")
    if not isinstance(record, dict):
        return Item(place, (), "bad_json")
    captions, reason = field_captions(record)
    file = next((record[name] for name in IMAGE_FIELDS if record.get(name)), None)
    if not isinstance(file, str):
        return Item(place, captions, "no_image_field")
    if is_unsafe(file):
        shown = file.encode("utf-8", "replace").decode()
        return Item(shown, captions, "unsafe_name")
    return Item(file, captions, reason, record)


def image_files(pictures: Storage) -> set[str]:
    """Image files below a folder, by name relative to it; hidden ones are left out."""
    names = (entry.name for entry in pictures.entries(deep=True))
    return {
        name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        for name in names
        if is_image(name)
    }
