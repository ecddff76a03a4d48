"""Reader of Karpathy's splits of COCO and Flickr30K (``dataset_coco.json``)."""

from pathlib import Path

from evaluation.benchmarks.fields import field, read_json, refuse_doubled
from evaluation.benchmarks.records import CaptionedImage
from evaluation.images.files import existing


def read_karpathy(annotations: Path, images: Path, split: str) -> list[CaptionedImage]:
    """The images of one split with their raw sentences.

    Raises:
        FileNotFoundError: the file or an image is not there.
        ValueError: a field is missing, an id is given twice, or the split is not in the file.
    """
    entries = field(read_json(annotations), "images", list, annotations)
    items, splits, sentence_ids = [], set(), []
    for entry in entries:
        splits.add(field(entry, "split", str, annotations))
        if entry["split"] != split:
            continue
        sentences = field(entry, "sentences", list, annotations)
        captions = tuple(field(sentence, "raw", str, annotations) for sentence in sentences)
        sentence_ids += [sentence["sentid"] for sentence in sentences if "sentid" in sentence]
        name = field(entry, "filename", str, annotations)
        folder = entry.get("filepath", "")
        names = [f"{folder}/{name}" if folder else name, name]
        path = existing(images, names, annotations)
        items.append(CaptionedImage(entry.get("cocoid", entry.get("imgid", name)), path, captions))
    if not items:
        known = ", ".join(sorted(splits)) or "none"
        raise ValueError(f"{annotations}: no image of split {split!r}; its splits: {known}")
    refuse_doubled([item.image_id for item in items], "image", annotations)
    refuse_doubled(sentence_ids, "caption", annotations)
    return items
