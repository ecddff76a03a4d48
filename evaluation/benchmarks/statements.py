"""Readers of texts that are judged: VSR's statements (true?) and HatefulMemes' texts (hateful?)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.benchmarks.fields import field, index_of, not_empty, read_jsonl, refuse_doubled
from evaluation.benchmarks.records import ImageId, Question, QuestionSet
from evaluation.images.files import existing

FALSE_TRUE = ("false", "true")
NO_YES = ("no", "yes")


def read_vsr(path: Path, images: Path) -> QuestionSet:
    """The statements of a JSON-lines file of VSR; the id of each is its line, from 1.

    Raises:
        FileNotFoundError: the file or an image is not there.
        ValueError: a field is missing, or a label is neither 0 nor 1.
    """
    questions: list[Question] = []
    files: dict[ImageId, Path] = {}
    for number, entry in enumerate(not_empty(read_jsonl(path), path), 1):
        name = field(entry, "image", str, path)
        files[name] = existing(images, [name], path)
        questions.append(
            Question(
                question_id=number,
                image_id=name,
                text=field(entry, "caption", str, path),
                question_type=str(entry.get("relation", "")),
                candidates=FALSE_TRUE,
                correct=_label(entry, FALSE_TRUE, path),
            )
        )
    return QuestionSet(tuple(questions), files)


def read_hatefulmemes(path: Path) -> QuestionSet:
    """The memes of a JSON-lines file of HatefulMemes; a test set has no labels.

    The field ``img`` names the image, as seen from the file's folder.

    Raises:
        FileNotFoundError: the file or an image is not there.
        ValueError: a field is missing, an id is given twice, or a label is neither 0 nor 1.
    """
    entries = not_empty(read_jsonl(path), path)
    keys = [field(entry, "id", (int, str), path) for entry in entries]
    refuse_doubled(keys, "meme", path)
    questions: list[Question] = []
    files: dict[ImageId, Path] = {}
    for key, entry in zip(keys, entries, strict=True):
        files[key] = existing(path.parent, [field(entry, "img", str, path)], path)
        text = field(entry, "text", str, path)
        label = _label(entry, NO_YES, path)
        questions.append(Question(key, key, text, candidates=NO_YES, correct=label))
    return QuestionSet(tuple(questions), files)


def _label(entry: Any, names: Sequence[str], path: Path) -> int | None:
    return index_of(entry, "label", names, path)
