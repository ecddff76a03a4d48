"""Images to caption or to embed: sources that need no captions, cut into pieces of work.

    source = open_pictures("photos")             # a folder, tars, a JSONL, one image, s3://...
    pieces = cut_pieces(source, size=64)
    for name, record in pieces[0].records(source.reader()): ...

A piece is named by the images that it holds, and its ends are chosen by their names alone. So an
image that is added to a folder changes the one piece that it comes into, and all others keep their
names, under which their results are found again.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from cluster.storage.base import Entry, Storage, absolute_url, local_path, split_url
from cluster.storage.local import LocalStorage
from cluster.storage.open import open_storage
from pipeline.filenames import is_hidden, is_image
from pipeline.sample import Rejected, Sample
from pipeline.sources.base import InputShard, ListedImage, Source
from pipeline.sources.lists import ListSource, image_files, list_items
from pipeline.sources.records import name_items
from pipeline.sources.tars import TarSource

_LARGEST = 4  # pieces of a list have at most this many times the asked size


@dataclass(frozen=True, slots=True)
class Piece:
    """Some images that are worked on together.

    Attributes:
        name: name, which changes with the images' names, sizes and marks.
        shard: input shard that holds them.
        size: number of images, or of bytes of a remote tar.
        first, end: range of the shard's records; None is the end of the shard.
    """

    name: str
    shard: InputShard
    size: int
    first: int = 0
    end: int | None = None

    def __str__(self) -> str:
        return f"piece {self.name} ({self.shard.name})"

    def records(self, source: Source) -> Iterator[tuple[str, Sample | Rejected]]:
        """The images with their names: of a file in the folder, or ``TAR/KEY`` in a tar."""
        found = islice(source.read(self.shard), self.first, self.end)
        if self.shard.items:
            return zip((item.file for item in self.shard.items), found, strict=True)
        return ((f"{self.shard.name}/{record.key}", record) for record in found)


def open_pictures(url: str, images: str | None = None) -> TarSource | ListSource:
    """Open a set of images.

    Args:
        url: a folder of tars, or of images (those of its folders count); one tar; a JSONL with an
            image in each line, whose other images are left out; one image; or an ``s3://`` URL of
            any of these.
        images: image folder of a JSONL; default: the folder that it is in.

    Raises:
        ValueError: no image there, or a form that is not read.
        FileNotFoundError: nothing there.
    """
    folder, file = _locate(url)
    storage = open_storage(folder)
    if file.endswith(".jsonl"):
        pictures = open_storage(absolute_url(images)) if images else storage
        with storage.local_copy(file) as path:
            items = [_uncaptioned(item) for item in list_items(path, url, pictures)]
        return ListSource(Path(file).stem, pictures, name_items(items), len(items), False)
    entries = [entry for entry in storage.entries(deep=not file) if not is_hidden(entry.name)]
    tars = [e for e in entries if e.name.endswith(".tar") and file in ("", e.name)]
    if tars:
        return TarSource(Path(file or folder).name, storage, tuple(tars), captioned=False)
    names = [file] if file and is_image(file) else sorted(image_files(storage)) if not file else []
    if not names:
        raise ValueError(
            f"input {url!r} has no image and no .tar; give a folder with images or tars, a .tar, a "
            ".jsonl with an image in each line, or one image"
        )
    listed = [ListedImage(name, ()) for name in names]
    return ListSource(Path(folder).name, storage, name_items(listed), len(listed), False)


def _uncaptioned(item: ListedImage) -> ListedImage:
    """The item without a reason that lies in its caption: only such an item has fields."""
    return replace(item, reason="") if item.meta else item


def _locate(url: str) -> tuple[str, str]:
    """(folder, file) of an input; the file is "" where the input is a folder."""
    if url.startswith("s3://"):
        folder, name = split_url(url)
        if Path(name).suffix and open_storage(folder).exists(name):
            return folder, name
        if open_storage(url).entries(deep=True):
            return url.rstrip("/"), ""
        raise FileNotFoundError(f"input {url!r} does not exist")
    path = local_path(url)
    if not path.exists():
        raise FileNotFoundError(f"input {url!r} does not exist")
    path = path.resolve()
    return (str(path), "") if path.is_dir() else (str(path.parent), path.name)


def cut_pieces(source: TarSource | ListSource, size: int) -> list[Piece]:
    """The pieces of a source, in its order.

    Args:
        size: number of images of a piece, about; a tar of a remote store is one piece, since each
            piece downloads it.

    Raises:
        ValueError: the size is below 1.
    """
    if size < 1:
        raise ValueError(f"a piece must have at least 1 image, got {size}")
    if isinstance(source, ListSource):
        return _cut_list(source, size)
    pieces = []
    for shard in source.shards():
        if isinstance(source.storage, LocalStorage):
            count = sum(1 for _ in source.read(shard))
            for first in range(0, count, size):
                end = min(first + size, count)
                name = _digest([f"{shard.name}\0{shard.size}\0{shard.etag}\0{first}\0{end}"])
                pieces.append(Piece(name, shard, end - first, first, end))
        else:
            name = _digest([f"{shard.name}\0{shard.size}\0{shard.etag}"])
            pieces.append(Piece(name, shard, shard.size))
    return pieces


def _cut_list(source: ListSource, size: int) -> list[Piece]:
    marks = _marks(source.storage)
    pieces: list[Piece] = []
    waiting: list[ListedImage] = []
    for item in source.items:
        waiting.append(item)
        ends = int(_digest([item.file]), 16) % size == 0
        if ends or len(waiting) == _LARGEST * size or item is source.items[-1]:
            told = [_told(one, marks.get(one.file)) for one in waiting]
            name = _digest(told)
            shard = InputShard(name, len(waiting), "", tuple(waiting))
            pieces.append(Piece(name, shard, len(waiting)))
            waiting = []
    return pieces


def read_images(source: TarSource | ListSource, names: Iterable[str]) -> dict[str, bytes]:
    """The encoded images of these names, as ``Piece.records`` gives them; those that are there."""
    wanted = set(names)
    if isinstance(source, ListSource):
        files = (item.file for item in source.items if item.file in wanted and not item.reason)
        return {file: source.storage.read(file) for file in files if source.storage.exists(file)}
    found: dict[str, bytes] = {}
    for shard in source.shards():
        if any(name.startswith(f"{shard.name}/") for name in wanted):
            for record in source.read(shard):
                name = f"{shard.name}/{record.key}"
                if isinstance(record, Sample) and name in wanted:
                    found[name] = record.image
    return found


def _marks(storage: Storage) -> dict[str, Entry]:
    return {entry.name: entry for entry in storage.entries(deep=True)}


def _told(item: ListedImage, entry: Entry | None) -> str:
    mark = f"{entry.size}\0{entry.etag}" if entry else "gone"
    return f"{item.file}\0{item.reason}\0{mark}"


def _digest(texts: list[str]) -> str:
    told = "\n".join(texts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(told, digest_size=10).hexdigest()
