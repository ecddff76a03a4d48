"""The source behind a path or URL: tars (img2dataset, webdataset), JSONL, COCO, Visual Genome.

A source is cut into input shards; reading a shard yields a ``Sample`` or a ``Rejected`` with a
reason for every input, in key order. Nothing is lost silently: a line without its file, a file
without its line, half a tar: each gets its row.
"""

from dataclasses import dataclass
from pathlib import Path

from cluster.storage.base import Entry, Storage, absolute_url, local_path, split_url
from cluster.storage.open import open_storage
from pipeline.filenames import is_hidden
from pipeline.sources.base import InputShard, ListedImage, Source
from pipeline.sources.captions_json import read_captions_json
from pipeline.sources.lists import ListSource, read_jsonl
from pipeline.sources.records import name_items
from pipeline.sources.tars import TarSource

__all__ = ["KNOWN", "InputShard", "Known", "Source", "open_source"]

REGIONS = "region_descriptions.json"
_FORMATS = {
    "tars": "tars",
    "jsonl": "a JSONL of files and captions",
    "coco": "COCO's caption JSON",
    "regions": f"Visual Genome's {REGIONS}",
    "pairs": "a JSON list of {image, caption}",
    "conversations": "a JSON list of LLaVA's {image, conversations}",
}


@dataclass(frozen=True, slots=True)
class Known:
    """A source of the paper: whether people wrote its captions, and in what forms it comes."""

    human: bool
    formats: tuple[str, ...]


_HUMAN, _WEB = (
    Known(True, ("coco", "pairs", "jsonl", "tars")),
    Known(False, ("tars", "jsonl", "conversations")),
)
KNOWN = {
    "coco": _HUMAN,
    "vg": Known(True, ("regions", "pairs", "jsonl", "tars")),
    "cc3m": _WEB,
    "cc12m": _WEB,
    "sbu": _WEB,
    "laion": _WEB,
}
"""The paper's sources by the names that ``--source`` knows."""


def open_source(
    url: str, images: str | None = None, shard_size: int = 1_000, name: str | None = None
) -> Source:
    """Recognise the form of an input and open it as a source.

    Args:
        url: a folder of tars, or of folders of tars; one tar; a folder with ``captions.jsonl`` (or
            its only ``*.jsonl``), or with Visual Genome's ``region_descriptions.json``; a JSONL
            file; a JSON file of captions (COCO, Visual Genome, a list of pairs).
        images: the image folder of a JSONL or JSON; default: beside the file.
        shard_size: samples per shard of a listed source (tars are shards themselves).
        name: the source's name in uids and records; default: the last part of ``url``,
            without its extension. One of ``KNOWN`` also says whether people wrote its captions;
            otherwise those of JSON files count as written by people, all others as found.

    Raises:
        ValueError: nothing readable there, a scheme that is not supported, or a form in which
            the source that ``name`` says does not come.
        FileNotFoundError: no such path.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size={shard_size}: at least 1")
    folder, file = _locate(url)
    storage = open_storage(folder)
    label = name or (Path(file).stem if file else Path(folder).name)
    if not file:
        file = "" if _tars(storage) else _captions_file(storage)
    tars = _tars(storage, deep=True) if not file else _tars(storage, only=file)
    if tars:
        return TarSource(label, storage, tars, _human(url, name, "tars"))
    if not file:
        raise _nothing(url, storage)
    if Path(file).suffix not in (".jsonl", ".json"):
        raise ValueError(f"input {url!r}: expected a folder, .tar, .jsonl or .json of captions")
    pictures = open_storage(absolute_url(images)) if images else storage
    if images and not pictures.entries(deep=True):
        raise FileNotFoundError(f"images {images!r} is no folder with files; give it with --images")
    kind, items = _read_list(storage, file, pictures)
    return ListSource(label, pictures, name_items(items), shard_size, _human(url, name, kind))


def _tars(storage: Storage, only: str = "", deep: bool = False) -> tuple[Entry, ...]:
    """The tars of a folder (``deep``: and below it, if it has none itself), or one of them."""
    tars = tuple(entry for entry in _visible(storage) if entry.name.endswith(".tar"))
    if deep and not tars:
        return tuple(e for e in _visible(storage, deep=True) if e.name.endswith(".tar"))
    return tuple(entry for entry in tars if only in ("", entry.name))


def _visible(storage: Storage, deep: bool = False) -> list[Entry]:
    """The files of a folder but hidden ones."""
    return [entry for entry in storage.entries(deep=deep) if not is_hidden(entry.name)]


def _nothing(url: str, storage: Storage) -> ValueError:
    """The error for a folder without anything to read."""
    names = [entry.name for entry in _visible(storage, deep=True)]
    packed = [name for name in names if name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz"))]
    hint = f"; {packed[0]} is compressed: unpack it to a plain .tar" if packed else ""
    return ValueError(
        f"input {url!r} has no .tar and no .jsonl; give a folder with one of them, or a .json "
        f"of captions (COCO, Visual Genome){hint}"
    )


def _read_list(storage: Storage, file: str, pictures: Storage) -> tuple[str, list[ListedImage]]:
    where = f"{storage.url}/{file}"
    with storage.local_copy(file) as path:
        if file.endswith(".jsonl"):
            return "jsonl", list(read_jsonl(path, where, pictures))
        return read_captions_json(path, where, pictures)


def _human(url: str, name: str | None, kind: str) -> bool:
    """Whether people wrote the captions of a source of this name and form."""
    known = KNOWN.get(name or "")
    if known is None:
        return kind in ("coco", "regions", "pairs")
    if kind not in known.formats:
        wanted = ", ".join(_FORMATS[form] for form in known.formats)
        raise ValueError(
            f"--source {name}: input {url!r} is {_FORMATS[kind]}; it comes as {wanted} "
            "(any other name takes all of them)"
        )
    return known.human


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


def _captions_file(storage: Storage) -> str:
    """The list of captions in a folder; "" where there is none."""
    lists = [entry.name for entry in _visible(storage) if entry.name.endswith(".jsonl")]
    named = [name for name in lists if name == "captions.jsonl"]
    if named or len(lists) == 1:
        return (named or lists)[0]
    if lists:
        raise ValueError(
            f"input {storage.url!r} has {len(lists)} .jsonl files and none is captions.jsonl; "
            "name the file"
        )
    return REGIONS if storage.exists(REGIONS) else ""
