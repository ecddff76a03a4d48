"""Readers of data sets that only instruction tuning uses: TextCaps and OCR-VQA.

The data sets that are benchmarks too have their readers in ``evaluation.benchmarks``.
"""

from pathlib import Path

from evaluation.benchmarks.fields import field, not_empty, read_json, refuse_doubled, texts
from evaluation.images.files import existing
from pipeline.instructions.rows import Row

_OCRVQA_SPLITS = {"train": 1, "val": 2, "test": 3}
_ENDINGS = (".jpg", ".png", ".gif", ".jpeg")


def read_ocr_tokens(path: Path) -> dict[str, tuple[str, ...]]:
    """The words of each image in ``TextVQA_Rosetta_OCR_v0.2_SPLIT.json``, by image id.

    Raises:
        FileNotFoundError, ValueError: as ``evaluation.benchmarks.fields`` says.
    """
    entries = field(read_json(path), "data", list, path)
    keys = [field(entry, "image_id", str, path) for entry in entries]
    refuse_doubled(keys, "image", path)
    return {key: texts(one, "ocr_tokens", path) for key, one in zip(keys, entries, strict=True)}


def read_textcaps(path: Path, ocr: Path | None, images: Path) -> list[Row]:
    """A row for each caption of ``TextCaps_0.1_SPLIT.json``.

    Args:
        ocr: file of the words on TextVQA's images, which are TextCaps'; None: without words.

    Raises:
        FileNotFoundError: a file or an image is not there.
        ValueError: a field is missing or of another type.
    """
    entries = not_empty(field(read_json(path), "data", list, path), path)
    words = {} if ocr is None else read_ocr_tokens(ocr)
    rows = []
    for number, entry in enumerate(entries):
        image = field(entry, "image_id", str, path)
        rows.append(
            Row(
                key=f"{image} {entry.get('caption_id', number)}",
                image=existing(images, [image + ending for ending in _ENDINGS], path),
                texts=(field(entry, "caption_str", str, path),),
                ocr_tokens=words.get(image, ()),
            )
        )
    return rows


def read_ocrvqa(path: Path, ocr: Path | None, images: Path, split: str) -> list[Row]:
    """A row for each question of OCR-VQA's ``dataset.json``.

    Args:
        ocr: JSON file of {image id: list of words}; None: without words. The authors publish none,
            and the source of InstructBLIP's words is not stated.

    Raises:
        FileNotFoundError: a file or an image is not there.
        ValueError: a field is missing, questions and answers are not as many, or the split is empty
            or unknown.
    """
    if split not in _OCRVQA_SPLITS:
        raise ValueError(f"OCR-VQA has no split {split!r}; its splits: {', '.join(_OCRVQA_SPLITS)}")
    books = read_json(path)
    if not isinstance(books, dict):
        raise ValueError(f"{path}: OCR-VQA's books are an object, keyed by image id")
    words = {} if ocr is None else read_json(ocr)
    rows = []
    for image, book in books.items():
        if field(book, "split", int, path) != _OCRVQA_SPLITS[split]:
            continue
        asked, answers = texts(book, "questions", path), texts(book, "answers", path)
        if len(asked) != len(answers):
            raise ValueError(f"{path}: {image} has {len(asked)} questions, {len(answers)} answers")
        file = existing(images, [image + ending for ending in _ENDINGS], path)
        said = texts(words, image, ocr) if ocr is not None and image in words else ()
        rows += [
            Row(f"{image} {at}", file, (answer,), question, ocr_tokens=said)
            for at, (question, answer) in enumerate(zip(asked, answers, strict=True))
        ]
    return not_empty(rows, path)
