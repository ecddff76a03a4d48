"""Where pairs come from: tars (img2dataset, webdataset), a folder with a JSONL, COCO JSON.

A source is cut into input shards; reading a shard yields a ``Sample`` or a ``Rejected`` with a
reason for every input, in key order. Nothing is lost silently: a line without its file, a file
without its line, half a tar: each gets its row.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Entry, Storage, absolute_url, local_path, open_storage, split_url
from pipeline.sample import Rejected, Sample, make_uid
from pipeline.shards import Member, TarError, group_members, split_name, walk_tar

IMAGE_EXTS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
TEXT_EXTS = ("txt", "caption", "text")
IMAGE_FIELDS = ("file", "file_name", "image", "path")
TEXT_FIELDS = ("caption", "text")
_PROBE = 1 << 16  # bytes of a tar's two ends that go into its etag


@dataclass(frozen=True, slots=True)
class Item:
    """One input of a listed source: the file, and what its list says about it."""

    file: str
    captions: tuple[str, ...]
    reason: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


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


def open_source(
    url: str, images: str | None = None, shard_size: int = 1_000, name: str | None = None
) -> Source:
    """Recognise what ``url`` is.

    Args:
        url: a folder of tars or one tar; a folder with ``captions.jsonl`` (or its only
            ``*.jsonl``); a JSONL file; a COCO JSON file.
        images: the image folder of a JSONL or COCO JSON; default: beside the file.
        shard_size: samples per shard of a listed source (tars are shards themselves).
        name: the source's name in uids and records; default: the last part of ``url``,
            without its extension.

    Raises:
        ValueError: nothing readable there, or a scheme that is not supported.
        FileNotFoundError: no such path.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size={shard_size}: at least 1")
    folder, file = _locate(url)
    storage = open_storage(folder)
    label = name or (Path(file).stem if file else Path(folder).name)
    if not file:
        tars = tuple(e for e in storage.entries() if e.name.endswith(".tar"))
        if tars:
            return TarSource(label, storage, tars)
        file = _captions_file(storage, url)
    suffix = Path(file).suffix
    if suffix == ".tar":
        return TarSource(label, storage, tuple(e for e in storage.entries() if e.name == file))
    if suffix not in (".jsonl", ".json"):
        raise ValueError(f"input {url!r}: expected a folder, .tar, .jsonl or COCO .json")
    pictures = open_storage(absolute_url(images)) if images else storage
    if images and not pictures.entries(deep=True):
        raise FileNotFoundError(f"images {images!r} is no folder with files; give it with --images")
    with storage.local_copy(file) as path:
        if suffix == ".jsonl":
            items = tuple(_read_jsonl(path, f"{folder}/{file}", pictures))
        else:
            items = tuple(_read_coco(path, f"{folder}/{file}"))
    return ListSource(label, pictures, items, shard_size, human=suffix == ".json")


def _locate(url: str) -> tuple[str, str]:
    """(folder, file) of an input; the file is "" where the input is a folder.

    Raises:
        FileNotFoundError: nothing there.
    """
    if url.startswith("s3://"):
        folder, file = split_url(url)
        if Path(file).suffix in (".tar", ".jsonl", ".json"):
            if not open_storage(folder).exists(file):
                raise FileNotFoundError(f"input {url!r} does not exist")
            return folder, file
        if not open_storage(url).entries(deep=True):
            raise FileNotFoundError(f"input {url!r} does not exist")
        return url.rstrip("/"), ""
    path = local_path(url)
    if not path.exists():
        raise FileNotFoundError(f"input {url!r} does not exist")
    path = path.resolve()
    return (str(path), "") if path.is_dir() else (str(path.parent), path.name)


def _captions_file(storage: Storage, url: str) -> str:
    lists = [entry.name for entry in storage.entries() if entry.name.endswith(".jsonl")]
    named = [name for name in lists if name == "captions.jsonl"]
    if named or len(lists) == 1:
        return (named or lists)[0]
    if lists:
        raise ValueError(
            f"input {url!r} has {len(lists)} .jsonl files and none is captions.jsonl; name the file"
        )
    raise ValueError(
        f"input {url!r} has no .tar and no .jsonl; give a folder with one of them or a COCO .json"
    )


# --- tars -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TarSource:
    """img2dataset's output (tars, perhaps a parquet beside each) or plain webdataset tars."""

    name: str
    storage: Storage
    tars: tuple[Entry, ...]

    def shards(self) -> list[InputShard]:
        """One shard per tar; the etag is the store's, or of its size and its two ends."""
        return [
            InputShard(tar.name, tar.size, tar.etag or _ends(self.storage, tar))
            for tar in self.tars
        ]

    def reader(self) -> Source:
        """The same without the list, to send around: each shard names its tar."""
        return replace(self, tars=())

    def read(self, shard: InputShard) -> Iterator[Sample | Rejected]:
        """Every sample of the tar; damage becomes one more row behind the whole samples."""
        columns = _columns(self.storage, str(Path(shard.name).with_suffix(".parquet")))
        reader = _TarReader(self.name, shard.name, *columns)
        with self.storage.local_copy(shard.name) as path, open(path, "rb") as file:
            yield from reader.read(file, os.fstat(file.fileno()).st_size)


def _ends(storage: Storage, tar: Entry) -> str:
    digest = hashlib.sha256(storage.read_range(tar.name, 0, _PROBE))
    digest.update(storage.read_range(tar.name, max(_PROBE, tar.size - _PROBE), _PROBE))
    return digest.hexdigest()[:32]


def _columns(storage: Storage, parquet: str) -> tuple[dict[str, dict[str, Any]], bool]:
    """img2dataset's columns by key, and whether they could be read."""
    if not storage.exists(parquet):
        return {}, True
    try:
        rows = pq.read_table(pa.BufferReader(storage.read(parquet))).to_pylist()
    except (pa.ArrowException, OSError):
        return {}, False
    return {str(row["key"]): row for row in rows if row.get("key") is not None}, True


class _TarReader:
    def __init__(
        self, source: str, shard: str, columns: dict[str, dict[str, Any]], columns_ok: bool
    ) -> None:
        self.source, self.shard = source, shard
        self.columns, self.columns_ok = columns, columns_ok
        self.seen: set[str] = set()

    def read(self, file: BinaryIO, size: int) -> Iterator[Sample | Rejected]:
        """Every sample of an open tar; what is damaged or no sample becomes a row of its own."""
        whole: list[Member] = []
        odd: list[Member] = []
        damage: TarError | None = None
        try:
            for member in walk_tar(file, size, ended=True):
                (whole if member.regular else odd).append(member)
        except TarError as broken:
            damage = broken
        if not whole and not damage:
            damage = TarError("empty_tar", "no members")
        groups = list(group_members(whole))
        for key, group in groups:
            # The damage may have taken members of the sample before it, such as the json with
            # its NSFW column: with fewer members than the first sample it is not whole.
            cut = damage is not None and group is groups[-1][1] and len(group) < len(groups[0][1])
            yield self._sample(file, key, group, damage if cut else None)
        for member in odd:
            if not member.name.endswith("/") and not self._is_folder(member, whole):
                yield self._rejected(member.name, "not_a_regular_file")
        if damage:
            yield self._rejected(self.shard, damage.reason)

    @staticmethod
    def _is_folder(member: Member, whole: Sequence[Member]) -> bool:
        return any(other.name.startswith(member.name + "/") for other in whole)

    def _rejected(self, key: str, reason: str, caption: str = "") -> Rejected:
        key = key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        uid = make_uid(self.source, self.shard, key)
        return Rejected(uid, key, self.source, self.shard, reason, caption)

    def _sample(
        self, file: BinaryIO, key: str, group: list[Member], damage: TarError | None
    ) -> Sample | Rejected:
        if _is_unsafe(key):
            return self._rejected(key, "unsafe_name")
        if key in self.seen:
            return self._rejected(key, "duplicate_key")
        self.seen.add(key)
        if damage:
            return self._rejected(key, damage.reason)
        data = {}
        for member in group:
            file.seek(member.data)
            data[split_name(member.name)[1]] = file.read(member.size)
        ext = next((ext for ext in data if ext in IMAGE_EXTS), None)
        if ext is None:
            return self._rejected(key, "no_image")
        meta, reason = self._meta(key, data)
        captions, text_reason = _tar_captions(data, meta)
        reason = reason or text_reason
        if reason:
            return self._rejected(key, reason, captions[0] if captions else "")
        uid = make_uid(self.source, self.shard, key)
        return Sample(
            uid, key, self.source, self.shard, data[ext], captions[0], captions, meta, ext
        )

    def _meta(self, key: str, data: dict[str, bytes]) -> tuple[dict[str, Any], str]:
        columns = self.columns.get(key, {})
        if "json" not in data:
            return columns, "" if self.columns_ok else "unreadable_parquet"
        try:
            meta = json.loads(data["json"])
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
            return columns, "bad_json"
        return {**columns, **meta} if isinstance(meta, dict) else columns, ""


def _tar_captions(data: dict[str, bytes], meta: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    text = next((data[ext] for ext in TEXT_EXTS if ext in data), None)
    if text is not None:
        try:
            return (text.decode("utf-8"),), ""
        except UnicodeDecodeError:
            return (text.decode("utf-8", "replace"),), "caption_not_utf8"
    return _field_captions(meta)


def _field_captions(record: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    value = next((record[name] for name in TEXT_FIELDS if record.get(name) is not None), None)
    if value is None:
        return (), "no_caption"
    if not isinstance(value, str):
        return (json.dumps(value, sort_keys=True, ensure_ascii=False),), "caption_not_text"
    if _has_lone_surrogate(value):
        return (value.encode("utf-8", "replace").decode(),), "caption_not_utf8"
    return (value,), ""


def _has_lone_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _is_unsafe(name: str) -> bool:
    """Absolute, leaving its folder, not UTF-8, or with control characters."""
    return (
        not name.rpartition("/")[2]
        or name.startswith("/")
        or "\\" in name
        or ".." in name.split("/")
        or any(ord(character) < 32 for character in name)
        or _has_lone_surrogate(name)
    )


# --- lists ------------------------------------------------------------------------------------


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
        ext = Path(item.file).suffix.lstrip(".").lower()
        ext = ext if ext in IMAGE_EXTS else "jpg"
        return Sample(
            uid, key, self.name, shard, image, caption, item.captions, item.meta, ext, self.human
        )


def _file_key(file: str) -> str:
    """A key from a file's name: no extension, no dots (webdataset cuts the name at the first)."""
    folder, slash, base = file.rpartition("/")
    stem, dot, _ = base.rpartition(".")
    return folder + slash + (stem if dot and stem else base).replace(".", "_")


def _read_jsonl(path: Path, url: str, pictures: Storage) -> Iterator[Item]:
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
    for file in sorted(_image_files(pictures) - named):
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
    captions, reason = _field_captions(record)
    file = next((record[name] for name in IMAGE_FIELDS if record.get(name)), None)
    if not isinstance(file, str):
        return Item(place, captions, "no_image_field")
    if _is_unsafe(file):
        shown = file.encode("utf-8", "replace").decode()
        return Item(shown, captions, "unsafe_name")
    return Item(file, captions, reason, record)


def _image_files(pictures: Storage) -> set[str]:
    """Image files below a folder, by name relative to it; hidden ones are left out."""
    names = (entry.name for entry in pictures.entries(deep=True))
    return {
        name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        for name in names
        if name.rpartition(".")[2].lower() in IMAGE_EXTS
    }


def _read_coco(path: Path, url: str) -> Iterator[Item]:
    """COCO captions: one item per image with all its captions, in the order of image ids."""
    try:
        data = json.loads(path.read_text("utf-8"))
        images = {image["id"]: image["file_name"] for image in data["images"]}
        annotations = [(note["image_id"], note["caption"]) for note in data["annotations"]]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as broken:
        raise ValueError(
            f"input {url!r} is no COCO caption file ({broken!r}); expected images "
            "[{id, file_name}] and annotations [{image_id, caption}]"
        ) from broken
    captions: dict[Any, list[Any]] = {}
    for image_id, caption in annotations:
        captions.setdefault(image_id, []).append(caption)
    for image_id, file in images.items():
        yield _coco_item(file, captions.pop(image_id, []), image_id)
    for image_id, orphans in captions.items():
        yield Item(f"(image {image_id})", tuple(map(str, orphans)), "no_image")


def _coco_item(file: Any, captions: list[Any], image_id: Any) -> Item:
    texts = tuple(text for text in captions if isinstance(text, str) and text.strip())
    if not isinstance(file, str) or _is_unsafe(file):
        return Item(f"(image {image_id})", texts, "unsafe_name")
    if not texts:
        return Item(file, (), "caption_not_text" if captions else "no_caption")
    return Item(file, texts, "", {"image_id": image_id})
