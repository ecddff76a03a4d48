"""The JSON files of human-captioned sources: COCO, Visual Genome's regions, lists of pairs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.storage import Storage
from pipeline.source_base import IMAGE_FIELDS, TEXT_FIELDS, Item, has_lone_surrogate, is_unsafe
from pipeline.source_lists import image_files


def read_captions_json(path: Path, url: str, pictures: Storage) -> tuple[str, list[Item]]:
    """Recognise a JSON file of captions and read it whole.

    Args:
        path: the file; ``url`` names it in messages.
        pictures: the image folder, where Visual Genome's numbers are looked up.

    Returns:
        Its format (``coco``, ``regions`` or ``pairs``), and an item per image in the file's order.

    Raises:
        ValueError: none of the formats that we know.
    """
    try:
        data = json.loads(path.read_bytes(), object_hook=_slim)
    except (UnicodeDecodeError, json.JSONDecodeError) as broken:
        raise ValueError(f"input {url!r} is no JSON ({broken}); fetch it again") from broken
    if isinstance(data, dict) and "annotations" in data:
        return "coco", list(_read_coco(data, url))
    first = data[0] if isinstance(data, list) and data else None
    if isinstance(first, _Regions):
        return "regions", list(_read_regions(data, pictures))
    if isinstance(first, dict) and any(name in first for name in IMAGE_FIELDS):
        return "pairs", list(_read_pairs(data))
    raise ValueError(
        f"input {url!r} is no caption file that we know: expected COCO (images [{{id, file_name}}] "
        "and annotations [{image_id, caption}]), Visual Genome's region_descriptions.json "
        "([{id, regions: [{phrase}]}]) or pairs ([{image, caption}])"
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


def _item(file: Any, captions: list[Any], image_id: Any) -> Item:
    said = [text for text in captions if isinstance(text, str) and text.strip()]
    texts = tuple(text for text in said if not has_lone_surrogate(text))
    if not isinstance(file, str) or is_unsafe(file):
        return Item(f"(image {image_id})", texts, "unsafe_name")
    if not texts:
        reason = "caption_not_text" if captions else "no_caption"
        return Item(file, (), "caption_not_utf8" if said else reason)
    return Item(file, texts, "", {"image_id": image_id})


def _read_regions(data: list[Any], pictures: Storage) -> Iterator[Item]:
    """Visual Genome: each image with the phrases of its regions; images in VG_100K, VG_100K_2."""
    places = {file.rpartition("/")[2]: file for file in sorted(image_files(pictures))}
    for record in data:
        if not isinstance(record, _Regions) or not isinstance(record[1], list):
            yield Item(f"(record {json.dumps(record)[:80]})", (), "no_image_field")
            continue
        file = f"{record[0]}.jpg"
        yield _item(places.get(file, file), record[1], record[0])


def _read_pairs(data: list[Any]) -> Iterator[Item]:
    """Pairs of image and caption (or captions), as LAVIS lists COCO and Visual Genome."""
    captions: dict[str, list[Any]] = {}
    for number, pair in enumerate(data):
        fields = pair if isinstance(pair, dict) else {}
        file = next((fields[name] for name in IMAGE_FIELDS if fields.get(name)), None)
        if not isinstance(file, str):
            yield Item(f"(pair {number})", (), "no_image_field")
            continue
        text: Any = next((fields[name] for name in TEXT_FIELDS if fields.get(name) is not None), [])
        captions.setdefault(file, []).extend(text if isinstance(text, list) else [text])
    for file, texts in captions.items():
        yield _item(file, texts, file)


def _read_coco(data: dict[str, Any], url: str) -> Iterator[Item]:
    """COCO captions: one item per image with all its captions, in the order of image ids."""
    try:
        images = {image["id"]: image["file_name"] for image in data["images"]}
        annotations = [(note["image_id"], note["caption"]) for note in data["annotations"]]
    except (KeyError, TypeError) as broken:
        raise ValueError(
            f"input {url!r} is no COCO caption file ({broken!r}); expected images "
            "[{id, file_name}] and annotations [{image_id, caption}]"
        ) from broken
    captions: dict[Any, list[Any]] = {}
    for image_id, caption in annotations:
        captions.setdefault(image_id, []).append(caption)
    for image_id, file in images.items():
        yield _item(file, captions.pop(image_id, []), image_id)
    for image_id, orphans in captions.items():
        shown = tuple(str(text).encode("utf-8", "replace").decode() for text in orphans)
        yield Item(f"(image {image_id})", shown, "no_image")
