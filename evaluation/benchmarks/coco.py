"""Reader of COCO caption files, whose format NoCaps shares."""

from pathlib import Path

from evaluation.benchmarks.fields import field, not_empty, read_json, refuse_doubled
from evaluation.benchmarks.records import CaptionedImage
from evaluation.images.files import existing


def read_coco_captions(annotations: Path, images: Path) -> list[CaptionedImage]:
    """The images of a COCO caption file in its order; NoCaps has a ``domain`` for each.

    A test set has no annotations: its images then have no captions.

    Raises:
        FileNotFoundError: the file or an image is not there.
        ValueError: a field is missing, an id is given twice, or one image has no caption while
            others have.
    """
    content = read_json(annotations)
    captions: dict[str, list[str]] = {}
    if isinstance(content, dict) and "annotations" in content:
        entries = field(content, "annotations", list, annotations)
        for entry in entries:
            key = field(entry, "image_id", (int, str), annotations)
            captions.setdefault(str(key), []).append(field(entry, "caption", str, annotations))
        refuse_doubled([entry["id"] for entry in entries if "id" in entry], "caption", annotations)
    entries = field(content, "images", list, annotations)
    keys = [field(entry, "id", (int, str), annotations) for entry in entries]
    refuse_doubled(keys, "image", annotations)
    items = []
    for key, entry in zip(keys, entries, strict=True):
        if captions and str(key) not in captions:
            raise ValueError(f"{annotations}: image {key} has no caption")
        path = existing(images, [field(entry, "file_name", str, annotations)], annotations)
        texts = tuple(captions.get(str(key), ()))
        items.append(CaptionedImage(key, path, texts, str(entry.get("domain", ""))))
    return not_empty(items, annotations)
