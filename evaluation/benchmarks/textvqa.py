"""Reader of TextVQA: questions about text in images, and the words that OCR found there."""

from pathlib import Path

from evaluation.benchmarks.fields import field, not_empty, read_json, refuse_doubled, texts
from evaluation.benchmarks.records import Question, QuestionSet
from evaluation.images.files import find_images

MOST_TOKENS = 30
"""OCR words that a prompt may hold. The source of InstructBLIP's words is not published."""


def read_textvqa(path: Path, ocr: Path | None, images: Path) -> QuestionSet:
    """The questions of ``TextVQA_0.5.1_SPLIT.json``; the test set has no answers.

    Args:
        ocr: ``TextVQA_Rosetta_OCR_v0.2_SPLIT.json``, whose first ``MOST_TOKENS`` words of an image
            become the context of its questions; None: no context.

    Raises:
        FileNotFoundError: a file or an image is not there.
        ValueError: a field is missing, an id is given twice, or an image has no entry in ``ocr``.
    """
    entries = field(read_json(path), "data", list, path)
    keys = [field(entry, "question_id", (int, str), path) for entry in entries]
    refuse_doubled(keys, "question", path)
    words = {} if ocr is None else _read_words(ocr)
    questions = []
    for key, entry in zip(keys, entries, strict=True):
        image_id = field(entry, "image_id", str, path)
        if ocr is not None and image_id not in words:
            raise ValueError(f"{ocr}: no OCR words for image {image_id} of {path}")
        questions.append(
            Question(
                question_id=key,
                image_id=image_id,
                text=field(entry, "question", str, path),
                answers=texts(entry, "answers", path) if "answers" in entry else (),
                context=", ".join(words.get(image_id, ())[:MOST_TOKENS]),
            )
        )
    asked = tuple(not_empty(questions, path))
    return QuestionSet(asked, find_images(asked, images, path))


def _read_words(path: Path) -> dict[str, tuple[str, ...]]:
    entries = field(read_json(path), "data", list, path)
    keys = [field(entry, "image_id", str, path) for entry in entries]
    refuse_doubled(keys, "image", path)
    words = (texts(entry, "ocr_tokens", path) for entry in entries)
    return dict(zip(keys, words, strict=True))
