"""Readers of benchmark files: COCO captions, Karpathy splits, VQAv2 and GQA questions.

Each reader gives plain records with the path of every image, and refuses a file that lacks a field
or an image, or gives an id twice, with one line that names both. Nothing is decoded here.
"""

import json
import random
from collections import Counter
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from evaluation.benchmarks.image_files import ImageId, index_images
from pipeline.text import TextError, find_surrogate, load_json

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """One image with its reference captions (test sets: none; NoCaps: also its domain)."""

    image_id: ImageId
    path: Path
    captions: tuple[str, ...]
    domain: str = ""

    @property
    def references(self) -> tuple[str, ...]:
        """The captions that say something: those that are not blank."""
        return tuple(text for text in self.captions if text.strip())


@dataclass(frozen=True, slots=True)
class Question:
    """One question; ``answers`` are the annotators' (VQAv2: ten, GQA: one, test sets: none)."""

    question_id: ImageId
    image_id: ImageId
    text: str
    answers: tuple[str, ...] = ()
    question_type: str = ""
    answer_type: str = ""

    @property
    def answered(self) -> bool:
        """Whether there is a reference answer that says something."""
        return any(answer.strip() for answer in self.answers)


@dataclass(frozen=True)
class QuestionSet:
    """Questions and the images they ask about."""

    questions: tuple[Question, ...]
    images: Mapping[ImageId, Path]

    def first(self, limit: int | None) -> "QuestionSet":
        """The first ``limit`` questions (all of them for None) and their images only."""
        return self._only(self.questions[:limit])

    def answered(self) -> "QuestionSet":
        """The questions that have a reference answer, which are those that can be scored."""
        return self._only(tuple(question for question in self.questions if question.answered))

    def without(self, paths: Container[Path]) -> "QuestionSet":
        """The questions about other images than these."""
        kept = [q for q in self.questions if self.images[q.image_id] not in paths]
        return self._only(tuple(kept))

    def _only(self, questions: tuple[Question, ...]) -> "QuestionSet":
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


def read_coco_captions(annotations: Path, images: Path) -> list[CaptionedImage]:
    """COCO caption JSON (NoCaps too: ``domain`` per image), images in the file's order.

    A test set has no annotations: its images then have no captions.

    Raises:
        FileNotFoundError: the file or an image is not there.
        ValueError: a field is missing, an id is given twice, or others have captions but one image
            has none.
    """
    content = read_json(annotations)
    captions: dict[str, list[str]] = {}
    if isinstance(content, dict) and "annotations" in content:
        entries = _field(content, "annotations", list, annotations)
        for entry in entries:
            key = _field(entry, "image_id", (int, str), annotations)
            captions.setdefault(str(key), []).append(_field(entry, "caption", str, annotations))
        _refuse_doubled([entry["id"] for entry in entries if "id" in entry], "caption", annotations)
    entries = _field(content, "images", list, annotations)
    keys = [_field(entry, "id", (int, str), annotations) for entry in entries]
    _refuse_doubled(keys, "image", annotations)
    items = []
    for key, entry in zip(keys, entries, strict=True):
        if captions and str(key) not in captions:
            raise ValueError(f"{annotations}: image {key} has no caption")
        path = _existing(images, _field(entry, "file_name", str, annotations), annotations)
        texts = tuple(captions.get(str(key), ()))
        items.append(CaptionedImage(key, path, texts, str(entry.get("domain", ""))))
    return _some(items, annotations)


def read_karpathy(annotations: Path, images: Path, split: str) -> list[CaptionedImage]:
    """Karpathy's ``dataset_*.json``: the images of one split, with their raw sentences.

    Raises:
        FileNotFoundError: the file or an image is not there.
        ValueError: a field is missing, an id is given twice, or the split is not in the file.
    """
    entries = _field(read_json(annotations), "images", list, annotations)
    items, splits, sentence_ids = [], set(), []
    for entry in entries:
        splits.add(_field(entry, "split", str, annotations))
        if entry["split"] != split:
            continue
        sentences = _field(entry, "sentences", list, annotations)
        captions = tuple(_field(sentence, "raw", str, annotations) for sentence in sentences)
        sentence_ids += [sentence["sentid"] for sentence in sentences if "sentid" in sentence]
        name = _field(entry, "filename", str, annotations)
        folder = entry.get("filepath", "")
        path = _existing(images, f"{folder}/{name}" if folder else name, annotations, name)
        items.append(CaptionedImage(entry.get("cocoid", entry.get("imgid", name)), path, captions))
    if not items:
        known = ", ".join(sorted(splits)) or "none"
        raise ValueError(f"{annotations}: no image of split {split!r}; its splits: {known}")
    _refuse_doubled([item.image_id for item in items], "image", annotations)
    _refuse_doubled(sentence_ids, "caption", annotations)
    return items


def read_vqa(questions: Path, annotations: Path | None, images: Path) -> QuestionSet:
    """VQAv2 (and OK-VQA) questions with their annotations; without annotations no answers.

    Raises:
        FileNotFoundError: a file or an image is not there.
        ValueError: a field is missing, a question id is given twice, or a question has no
            annotation.
    """
    entries = _field(read_json(questions), "questions", list, questions)
    keys = [_field(entry, "question_id", (int, str), questions) for entry in entries]
    _refuse_doubled(keys, "question", questions)
    notes: dict[str, dict] = {}
    if annotations is not None:
        given = _field(read_json(annotations), "annotations", list, annotations)
        note_keys = [_field(note, "question_id", (int, str), annotations) for note in given]
        _refuse_doubled(note_keys, "question", annotations)
        notes = dict(zip(map(str, note_keys), given, strict=True))
    records = []
    for key, entry in zip(keys, entries, strict=True):
        if annotations is not None and str(key) not in notes:
            raise ValueError(f"{annotations}: no annotation for question {key} of {questions}")
        records.append(_vqa_question(entry, notes.get(str(key), {}), questions, annotations))
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
    """GQA questions: ``{id: {imageId, question, answer, types}}``; test sets have no answer.

    Raises:
        FileNotFoundError: the file or an image is not there.
        ValueError: a field is missing or a question id is given twice.
    """
    content = read_json(questions)
    if not isinstance(content, dict):
        raise ValueError(f"{questions}: GQA questions are an object keyed by question id")
    _refuse_doubled(_keys(questions), "question", questions)
    records = []
    for key, entry in content.items():
        image_id = _field(entry, "imageId", (int, str), questions)
        text = _field(entry, "question", str, questions)
        answers: tuple[str, ...] = ()
        if entry.get("answer") is not None:
            answers = (_field(entry, "answer", str, questions),)
        types = entry.get("types") or {}
        kinds = (str(types.get("semantic", "")), str(types.get("structural", "")))
        records.append(Question(key, image_id, text, answers, *kinds))
    return _with_images(_some(records, questions), images, questions)


def _keys(path: Path) -> list[str]:
    """The keys of a file's outermost object as they are written, a doubled one twice."""
    objects: list[list[str]] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        objects.append([key for key, _ in pairs])
        del objects[:-1]  # the outermost object ends last

    json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=note)
    return objects[-1]


def _refuse_doubled(ids: Iterable[Any], what: str, source: Path) -> None:
    """Refuse ids that occur twice; 7 and "7" are one id, since servers and files mix them."""
    doubled = [key for key, times in Counter(map(str, ids)).items() if times > 1]
    if doubled:
        named = ", ".join(doubled[:5]) + (f" and {len(doubled) - 5} more" if doubled[5:] else "")
        raise ValueError(
            f"{source}: {what} id {named} is given more than once; give each {what} an id of its "
            "own, or remove the repetition"
        )


def _with_images(questions: Sequence[Question], folder: Path, source: Path) -> QuestionSet:
    index = index_images(folder)
    images: dict[ImageId, Path] = {}
    for question in questions:
        key = question.image_id
        found = index.candidates(key)
        asks = f"{source}: question {question.question_id} asks about image {key}"
        if not found:
            raise FileNotFoundError(f"{asks}, which is not in {folder}")
        if len(found) > 1:
            named = ", ".join(str(path.relative_to(folder)) for path in found[:5])
            raise ValueError(f"{asks}, which may be any of {named} in {folder}; rename the others")
        images[key] = found[0]
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
