"""The JSON files of human-captioned sources: COCO, Visual Genome's regions, lists of pairs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.storage.base import Storage
from pipeline.captions import caption_field
from pipeline.filenames import is_unsafe
from pipeline.sources.base import ListedImage
from pipeline.sources.lists import image_files
from pipeline.sources.records import ImageFolder, gather, image_field
from pipeline.text import TextError, check_caption, load_json, printable


def read_captions_json(path: Path, url: str, pictures: Storage) -> tuple[str, list[ListedImage]]:
    """Recognise a JSON file of captions and read it whole.

    Args:
        path: the file; ``url`` names it in messages.
        pictures: the image folder, where Visual Genome's numbers are looked up.

    Returns:
        Its format (``coco``, ``regions``, ``pairs`` or ``conversations``), and an item per image in
        the file's order.

    Raises:
        ValueError: none of the formats that we know.
    """
    try:
        data = load_json(path.read_bytes(), slim=_slim)
    except TextError as broken:
        raise ValueError(
            f"input {url!r} is no JSON ({broken}); fetch it again, or name it .jsonl if it has an "
            "object a line"
        ) from broken
    folder = ImageFolder(pictures)
    if isinstance(data, dict) and "annotations" in data:
        return "coco", list(_read_coco(data, url, folder))
    records = data if isinstance(data, list) else []
    if records and isinstance(records[0], _Regions):
        return "regions", list(_read_regions(records, pictures))
    if any(image_field(record) for record in records):
        told = any("conversations" in record for record in records if isinstance(record, dict))
        return "conversations" if told else "pairs", list(_read_pairs(records, folder))
    raise ValueError(
        f"input {url!r} is no caption file that we know: expected COCO (images [{{id, file_name}}] "
        "and annotations [{image_id, caption}]), Visual Genome's region_descriptions.json "
        "([{id, regions: [{phrase}]}]), pairs ([{image, caption}]) or LLaVA's conversations "
        "([{image, conversations}])"
    )


class _Regions(tuple[Any, list[Any]]):
    """(image id, phrases) of Visual Genome: what is left of a record of its 700 MB."""


def _slim(record: dict[str, Any]) -> Any:
    """Keep of Visual Genome's records what is read: 5.4 million boxes would take gigabytes."""
    if "phrase" in record:
        return record["phrase"]
    if "regions" in record:
        return _Regions((record.get("id", record.get("image_id")), record["regions"]))
    return record


def _item(file: Any, captions: list[Any], image_id: Any, reason: str = "") -> ListedImage:
    """An image with its captions; ``image_id`` names it where its file's name cannot be used."""
    checked = [check_caption(text) for text in captions]
    texts = tuple(text for text, wrong in checked if not wrong and text.strip())
    if not isinstance(file, str) or is_unsafe(file):
        return ListedImage(printable(f"(image {image_id})"), texts, "unsafe_name")
    if not texts and not reason:
        wrongs = [wrong for _, wrong in checked]
        common = next((w for w in ("caption_not_utf8", "caption_not_text") if w in wrongs), "")
        return ListedImage(file, (), common or "no_caption")
    return ListedImage(file, texts, reason, {"image_id": image_id})


def _read_regions(data: list[Any], pictures: Storage) -> Iterator[ListedImage]:
    """Visual Genome: each image with the phrases of its regions; images in VG_100K, VG_100K_2."""
    places = {file.rpartition("/")[2]: file for file in sorted(image_files(pictures))}
    for record in data:
        if not isinstance(record, _Regions) or not isinstance(record[1], list):
            yield ListedImage(
                f"(record {json.dumps(record, default=str)[:80]})", (), "no_image_field"
            )
            continue
        file = f"{record[0]}.jpg"
        yield _item(places.get(file, file), record[1], record[0])


def _read_pairs(data: list[Any], folder: ImageFolder) -> Iterator[ListedImage]:
    """Pairs of image and caption (or captions), as LAVIS lists COCO and Visual Genome."""
    captions: dict[str, list[Any]] = {}
    for number, pair in enumerate(data):
        file = image_field(pair)
        if not file:
            yield ListedImage(f"(pair {number})", (), "no_image_field")
            continue
        text = caption_field(pair)
        texts = captions.setdefault(folder.relative(file), [])
        texts.extend(text if isinstance(text, list) else [text])
    for file, texts in captions.items():
        yield _item(file, texts, file)


def _read_coco(data: dict[str, Any], url: str, folder: ImageFolder) -> Iterator[ListedImage]:
    """COCO captions: one item per image with all its captions, in the order of image ids.

    An id that two files have is a ``doubled_image_id`` of both: whose captions they are is not
    known. A file that has two ids has the captions of both.
    """
    files: dict[Any, list[Any]] = {}
    captions: dict[Any, list[Any]] = {}
    try:
        for image in data["images"]:
            name = image["file_name"]
            file = folder.relative(name) if isinstance(name, str) else name
            same = files.setdefault(image["id"], [])
            if file not in same:
                same.append(file)
        for note in data["annotations"]:
            captions.setdefault(note["image_id"], []).append(note["caption"])
    except (KeyError, TypeError) as broken:
        raise ValueError(
            f"input {url!r} is no COCO caption file ({broken!r}); expected images "
            "[{id, file_name}] and annotations [{image_id, caption}]"
        ) from broken
    lines = []
    for image_id, same in files.items():
        texts = captions.pop(image_id, [])
        reason = "doubled_image_id" if len(same) > 1 else ""
        for file in same:
            place = f"(image {image_id}: {file})" if reason else f"(image {image_id})"
            lines.append((printable(place), _item(file, texts, image_id, reason)))
    yield from gather(lines)
    for image_id, orphans in captions.items():
        shown = tuple(printable(str(text)) for text in orphans)
        yield ListedImage(printable(f"(image {image_id})"), shown, "no_image")
