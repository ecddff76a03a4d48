"""Readers of benchmark files: COCO captions, Karpathy splits, VQAv2 and GQA questions.

Each reader gives plain records with the path of every image, and refuses a file that lacks a field
or an image with one line that names both. Nothing is decoded here.
"""

import json
import random
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pipeline.text import TextError, find_surrogate, load_json

ImageId = int | str
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """One image with its reference captions (NoCaps: also its domain, in/near/out)."""

    image_id: ImageId
    path: Path
    captions: tuple[str, ...]
    domain: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """One question; ``answers`` are the annotators' (VQAv2: ten, GQA: one, test sets: none)."""

    question_id: ImageId
    image_id: ImageId
    text: str
    answers: tuple[str, ...] = ()
    question_type: str = ""
    answer_type: str = ""


@dataclass(frozen=True)
class QuestionSet:
    """Questions and the images they ask about."""

    questions: tuple[Question, ...]
    images: Mapping[ImageId, Path]

    def first(self, limit: int | None) -> "QuestionSet":
        """The first ``limit`` questions (all of them for None) and their images only."""
        questions = self.questions[:limit]
        wanted = {question.image_id for question in questions}
        return QuestionSet(
            questions, {key: self.images[key] for key in self.images if key in wanted}
        )

    def shuffled(self, seed: int) -> "QuestionSet":
        """The blind control: every question is asked about the picture of another image."""
        other = derangement(list(self.images), seed)
        return replace(self, images={key: self.images[other[key]] for key in self.images})


def derangement(keys: Sequence[_Key], seed: int) -> dict[_Key, _Key]:
    """A seeded permutation that leaves no key in place (one cycle, by Sattolo's algorithm).

    Raises:
        ValueError: fewer than two keys.
    """
    if len(keys) < 2:
        raise ValueError(f"a shuffled control needs at least 2 images, got {len(keys)}")
    draw, order = random.Random(seed), list(keys)
    for i in range(len(order) - 1, 0, -1):
        j = draw.randrange(i)
        order[i], order[j] = order[j], order[i]
    return dict(zip(keys, order, strict=True))


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not JSON in UTF-8 (``pipeline.text`` has the rules), or a text in it has
            half of a character; the message names the entry.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    data = path.read_bytes()
    try:
        content = load_json(data)
    except TextError as wrong:
        raise ValueError(f"{path} is not JSON in UTF-8: {wrong}") from wrong
    # A file in UTF-8 can only hold a lone surrogate as an escape: most files have none to look at.
    place = find_surrogate(content) if b"\\ud" in data or b"\\uD" in data else ""
    if place:
        raise ValueError(
            f"{path}: {place} has half of a character (a lone surrogate, such as \\ud83d), "
            "which no tokenizer takes; repair or remove the text"
        )
    return content


def index_images(folder: Path) -> dict[ImageId, Path]:
    """Every image below ``folder`` by stem and by the number its stem ends with.

    So id 42 finds ``42.jpg``, ``000000000042.png`` and ``COCO_val2014_000000000042.jpg``. A key
    that two images answer to is left out.

    Raises:
        FileNotFoundError: the folder is not there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no such image folder: {folder}")
    found: dict[ImageId, Path] = {}
    ambiguous: set[ImageId] = set()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in _SUFFIXES:
            continue
        number = re.search(r"\d+$", path.stem)
        keys: list[ImageId] = [path.stem, *([int(number.group())] if number else [])]
        for key in keys:
            if found.setdefault(key, path) != path:
                ambiguous.add(key)
    return {key: path for key, path in found.items() if key not in ambiguous}


def read_coco_captions(annotations: Path, images: Path) -> list[CaptionedImage]:
    """COCO caption JSON (NoCaps too: ``domain`` per image), images in the file's order.

    Raises:
        FileNotFoundError: the file or an image is not there.
        ValueError: a field is missing, or an image has no caption.
    """
    content = read_json(annotations)
    captions: dict[ImageId, list[str]] = {}
    for entry in _field(content, "annotations", list, annotations):
        key = _field(entry, "image_id", (int, str), annotations)
        captions.setdefault(key, []).append(_field(entry, "caption", str, annotations))
    items = []
    for entry in _field(content, "images", list, annotations):
        key = _field(entry, "id", (int, str), annotations)
        if key not in captions:
            raise ValueError(f"{annotations}: image {key} has no caption")
        path = _existing(images, _field(entry, "file_name", str, annotations), annotations)
        items.append(CaptionedImage(key, path, tuple(captions[key]), str(entry.get("domain", ""))))
    return _some(items, annotations)


def read_karpathy(annotations: Path, images: Path, split: str) -> list[CaptionedImage]:
    """Karpathy's ``dataset_*.json``: the images of one split, with their raw sentences.

    Raises:
        FileNotFoundError: the file or an image is not there.
        ValueError: a field is missing or the split is not in the file.
    """
    entries = _field(read_json(annotations), "images", list, annotations)
    items, splits = [], set()
    for entry in entries:
        splits.add(_field(entry, "split", str, annotations))
        if entry["split"] != split:
            continue
        sentences = _field(entry, "sentences", list, annotations)
        captions = tuple(_field(sentence, "raw", str, annotations) for sentence in sentences)
        name = _field(entry, "filename", str, annotations)
        folder = entry.get("filepath", "")
        path = _existing(images, f"{folder}/{name}" if folder else name, annotations, name)
        items.append(CaptionedImage(entry.get("cocoid", entry.get("imgid", name)), path, captions))
    if not items:
        known = ", ".join(sorted(splits)) or "none"
        raise ValueError(f"{annotations}: no image of split {split!r}; its splits: {known}")
    return items


def read_vqa(questions: Path, annotations: Path | None, images: Path) -> QuestionSet:
    """VQAv2 (and OK-VQA) questions with their annotations; without annotations no answers.

    Raises:
        FileNotFoundError: a file or an image is not there.
        ValueError: a field is missing or a question has no annotation.
    """
    notes: dict[ImageId, dict] = {}
    if annotations is not None:
        for note in _field(read_json(annotations), "annotations", list, annotations):
            notes[_field(note, "question_id", (int, str), annotations)] = note
    records = []
    for entry in _field(read_json(questions), "questions", list, questions):
        key = _field(entry, "question_id", (int, str), questions)
        if annotations is not None and key not in notes:
            raise ValueError(f"{annotations}: no annotation for question {key} of {questions}")
        records.append(_vqa_question(entry, notes.get(key, {}), questions, annotations))
    return _with_images(_some(records, questions), images, questions)


def _vqa_question(entry: dict, note: dict, questions: Path, annotations: Path | None) -> Question:
    answers: tuple[str, ...] = ()
    if annotations is not None:
        given = _field(note, "answers", list, annotations)
        answers = tuple(_field(one, "answer", str, annotations) for one in given)
    return Question(
        question_id=entry["question_id"],
        image_id=_field(entry, "image_id", (int, str), questions),
        text=_field(entry, "question", str, questions),
        answers=answers,
        question_type=str(note.get("question_type", "")),
        answer_type=str(note.get("answer_type", "")),
    )


def read_gqa(questions: Path, images: Path) -> QuestionSet:
    """GQA questions: ``{id: {imageId, question, answer, types}}``.

    Raises:
        FileNotFoundError: the file or an image is not there.
        ValueError: a field is missing.
    """
    content = read_json(questions)
    if not isinstance(content, dict):
        raise ValueError(f"{questions}: GQA questions are an object keyed by question id")
    records = []
    for key, entry in content.items():
        answer = _field(entry, "answer", str, questions)
        types = entry.get("types") or {}
        image_id = _field(entry, "imageId", (int, str), questions)
        text = _field(entry, "question", str, questions)
        kinds = (str(types.get("semantic", "")), str(types.get("structural", "")))
        records.append(Question(key, image_id, text, (answer,), *kinds))
    return _with_images(_some(records, questions), images, questions)


def _with_images(questions: Sequence[Question], folder: Path, source: Path) -> QuestionSet:
    index, images = index_images(folder), {}
    for question in questions:
        key = question.image_id
        path = index.get(key) or index.get(int(key) if str(key).isdigit() else str(key))
        if path is None:
            raise FileNotFoundError(
                f"{source}: question {question.question_id} asks about image {key}, "
                f"which is not in {folder} or not under one name only"
            )
        images[key] = path
    return QuestionSet(tuple(questions), images)


def _field(entry: Any, name: str, kind: type | tuple[type, ...], source: Path) -> Any:
    if not isinstance(entry, dict) or name not in entry:
        shown = json.dumps(entry, ensure_ascii=False, default=str)[:120]
        raise ValueError(f"{source}: field {name!r} is missing in {shown}")
    if not isinstance(entry[name], kind) or isinstance(entry[name], bool):
        kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{source}: field {name!r} must be {kinds}, got {entry[name]!r:.80}")
    return entry[name]


def _existing(folder: Path, name: str, source: Path, *others: str) -> Path:
    for candidate in (name, *others):
        path = folder / candidate
        if path.is_file():
            return path
    raise FileNotFoundError(f"{source}: image {name} is not in {folder}")


_Item = TypeVar("_Item")


def _some(items: Iterable[_Item], source: Path) -> list[_Item]:
    found = list(items)
    if not found:
        raise ValueError(f"{source} holds no entries")
    return found
