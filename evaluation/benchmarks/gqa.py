"""Reader of GQA's questions."""

import json
from pathlib import Path
from typing import Any

from evaluation.benchmarks.fields import field, not_empty, read_json, refuse_doubled, texts
from evaluation.benchmarks.records import Question, QuestionSet
from evaluation.images.files import find_images

# Steps of a question's program that GQA's scorer does not count: they only say what is asked.
_NO_STEPS = ("exist", "query: name", "choose name")
_COMMON = ("color", "material", "shape")
"""Valid and plausible answers to the questions what two things have in common."""


def read_gqa(questions: Path, images: Path, choices: Path | None = None) -> QuestionSet:
    """The questions of ``{id: {imageId, question, answer, types}}``; a test set has no answers.

    ``groups``, ``entailed``, ``isBalanced`` and ``semantic`` are read where the file has them.

    Args:
        choices: ``TIER_choices.json``, ``{id: {valid, plausible}}``; None: there is none.

    Raises:
        FileNotFoundError: a file or an image is not there.
        ValueError: a field is missing, a question id is given twice, or a balanced question has no
            choices.
    """
    content = read_json(questions)
    if not isinstance(content, dict):
        raise ValueError(f"{questions}: GQA questions are an object keyed by question id")
    refuse_doubled(_keys(questions), "question", questions)
    fitting = {} if choices is None else read_json(choices)
    records = []
    for key, entry in content.items():
        image_id = field(entry, "imageId", (int, str), questions)
        text = field(entry, "question", str, questions)
        answers: tuple[str, ...] = ()
        if entry.get("answer") is not None:
            answers = (field(entry, "answer", str, questions),)
        types = entry.get("types") or {}
        kinds = (str(types.get("semantic", "")), str(types.get("structural", "")))
        valid, plausible = _fitting(key, entry, fitting, choices)
        records.append(
            Question(
                *(key, image_id, text, answers, *kinds),
                group=str((entry.get("groups") or {}).get("global") or ""),
                entailed=texts(entry, "entailed", questions) if entry.get("entailed") else (),
                balanced=entry.get("isBalanced") is not False,
                steps=_steps(entry, questions) if entry.get("semantic") else None,
                valid=valid,
                plausible=plausible,
            )
        )
    asked = tuple(not_empty(records, questions))
    return QuestionSet(asked, find_images(asked, images, questions))


def _steps(entry: Any, path: Path) -> int:
    """The steps of a question's program that count."""
    program = field(entry, "semantic", list, path)
    steps = [f"{field(s, 'operation', str, path)}: {s.get('argument')}" for s in program]
    return sum(not any(name in step for name in _NO_STEPS) for step in steps)


def _fitting(
    key: str, entry: Any, choices: Any, path: Path | None
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """The valid and the plausible answers to a question; None for one that does not count."""
    if path is None or entry.get("isBalanced") is False:
        return None, None
    given = field(choices, key, dict, path)
    if "Common" in str((entry.get("types") or {}).get("detailed")):
        return _COMMON, _COMMON
    return texts(given, "valid", path), texts(given, "plausible", path)


def _keys(path: Path) -> list[str]:
    """The keys of a file's outermost object as they are written, a doubled one twice."""
    objects: list[list[str]] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        objects.append([key for key, _ in pairs])
        del objects[:-1]  # the outermost object ends last

    json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=note)
    return objects[-1]
