"""Reader of GQA's questions."""

import json
from pathlib import Path
from typing import Any

from evaluation.benchmarks.fields import field, not_empty, read_json, refuse_doubled, texts
from evaluation.benchmarks.records import Question, QuestionSet
from evaluation.images.files import find_images


def read_gqa(questions: Path, images: Path) -> QuestionSet:
    """The questions of ``{id: {imageId, question, answer, types}}``; a test set has no answers.

    ``groups``, ``entailed`` and ``isBalanced`` are read where the file has them.

    Raises:
        FileNotFoundError: the file or an image is not there.
        ValueError: a field is missing or a question id is given twice.
    """
    content = read_json(questions)
    if not isinstance(content, dict):
        raise ValueError(f"{questions}: GQA questions are an object keyed by question id")
    refuse_doubled(_keys(questions), "question", questions)
    records = []
    for key, entry in content.items():
        image_id = field(entry, "imageId", (int, str), questions)
        text = field(entry, "question", str, questions)
        answers: tuple[str, ...] = ()
        if entry.get("answer") is not None:
            answers = (field(entry, "answer", str, questions),)
        types = entry.get("types") or {}
        kinds = (str(types.get("semantic", "")), str(types.get("structural", "")))
        records.append(
            Question(
                *(key, image_id, text, answers, *kinds),
                group=str((entry.get("groups") or {}).get("global") or ""),
                entailed=texts(entry, "entailed", questions) if entry.get("entailed") else (),
                balanced=entry.get("isBalanced") is not False,
            )
        )
    asked = tuple(not_empty(records, questions))
    return QuestionSet(asked, find_images(asked, images, questions))


def _keys(path: Path) -> list[str]:
    """The keys of a file's outermost object as they are written, a doubled one twice."""
    objects: list[list[str]] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        objects.append([key for key, _ in pairs])
        del objects[:-1]  # the outermost object ends last

    json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=note)
    return objects[-1]
