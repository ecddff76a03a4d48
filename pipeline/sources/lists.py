"""Sources that are a list of image files with captions, and the reader of such a list in JSONL."""

import hashlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.storage.base import Storage
from pipeline.captions import TEXT_FIELDS, field_captions
from pipeline.filenames import is_image, is_unsafe, member_suffix
from pipeline.sample import Rejected, Sample, make_uid
from pipeline.sources.base import InputShard, ListedImage, Source
from pipeline.sources.records import IMAGE_FIELDS, ImageFolder, gather, image_field
from pipeline.text import TextError, load_json, printable


@dataclass(frozen=True, slots=True)
class ListSource:
    """Image files in a folder, and a list of their captions.

    Attributes:
        name: name in records and uids.
        storage: image folder.
        items: the list.
        shard_size: images in a shard.
        human: whether people wrote the captions.
    """

    name: str
    storage: Storage
    items: tuple[ListedImage, ...]
    shard_size: int
    human: bool

    def shards(self) -> list[InputShard]:
        """Cuts of ``shard_size`` items in the list's order; the etag is of the list's content."""
        cuts = range(0, len(self.items), self.shard_size)
        return [
            self._shard(number, self.items[first : first + self.shard_size])
            for number, first in enumerate(cuts)
        ]

    def _shard(self, number: int, items: tuple[ListedImage, ...]) -> InputShard:
        content = repr([(i.file, i.captions, i.reason) for i in items]).encode("utf-8", "replace")
        etag = hashlib.sha256(content).hexdigest()[:32]
        return InputShard(f"part-{number:05d}", len(items), etag, items)

    def reader(self) -> Source:
        """The same without the list, to send around: each shard carries its own part."""
        return replace(self, items=())

    def read(self, shard: InputShard) -> Iterator[Sample | Rejected]:
        """A row for every item."""
        return (self._sample(shard.name, item) for item in shard.items)

    def _sample(self, shard: str, item: ListedImage) -> Sample | Rejected:
        key, reason = item.key, item.reason
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


def read_jsonl(path: Path, url: str, pictures: Storage) -> Iterator[ListedImage]:
    """The items of ``list_items``, then the images of the folder that no line names."""
    items = list_items(path, url, pictures)
    yield from items
    for file in sorted(image_files(pictures) - {item.file for item in items}):
        yield ListedImage(file, (), "no_line")


def list_items(path: Path, url: str, pictures: Storage) -> list[ListedImage]:
    """An item per image of a JSONL.

    Args:
        path: the file; ``url`` names it in messages.
        pictures: the image folder.

    Raises:
        ValueError: it is UTF-16, or no line names an image.
    """
    folder = ImageFolder(pictures)
    with open(path, "rb") as lines:
        if lines.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE):
            raise ValueError(f"input {url!r} is UTF-16; save it as UTF-8")
        lines.seek(0)
        places = ((f"(line {number:09d})", line) for number, line in enumerate(lines, start=1))
        items = list(gather((p, _line_item(line, p, folder)) for p, line in places if line.strip()))
    if all(item.file.startswith("(line ") for item in items):
        raise ValueError(
            f"input {url!r}: no line has an image field; expected one of "
            f"{', '.join(IMAGE_FIELDS)} and one of {', '.join(TEXT_FIELDS)} in the JSON object of "
            "each line (a JSON list goes into a .json file)"
        )
    return items


def _line_item(line: bytes, place: str, folder: ImageFolder) -> ListedImage:
    try:
        record = load_json(line)
    except TextError as broken:
        return ListedImage(
            place, (), "line_not_utf8" if broken.reason == "not_utf8" else broken.reason
        )
    if not isinstance(record, dict):
        return ListedImage(place, (), "bad_json")
    captions, reason = field_captions(record)
    file = image_field(record)
    if not file:
        return ListedImage(place, captions, "no_image_field")
    file = folder.relative(file)
    if is_unsafe(file):
        return ListedImage(printable(file), captions, "unsafe_name")
    return ListedImage(file, captions, reason, record)


def image_files(pictures: Storage) -> set[str]:
    """Image files below a folder, by name relative to it; hidden ones are left out."""
    names = (entry.name for entry in pictures.entries(deep=True))
    return {
        name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        for name in names
        if is_image(name)
    }
