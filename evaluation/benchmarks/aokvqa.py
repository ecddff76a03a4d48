"""Reader of A-OKVQA: each question has four choices, and ten direct answers.

Both are scored apart: ``read_aokvqa`` gives the direct answers to a model that generates,
``read_aokvqa_choices`` the choices to one that ranks.
"""

from pathlib import Path
from typing import Any

from evaluation.benchmarks.fields import (
    field,
    index_of,
    not_empty,
    read_json,
    refuse_doubled,
    texts,
)
from evaluation.benchmarks.records import Question, QuestionSet
from evaluation.images.files import find_images


def read_aokvqa(path: Path, images: Path) -> QuestionSet:
    """The questions of ``aokvqa_v1p0_SPLIT.json`` with their direct answers.

    Questions marked ``difficult_direct_answer`` have none here: the authors do not score them.

    Raises:
        FileNotFoundError: the file or an image is not there.
        ValueError: a field is missing or a question id is given twice.
    """
    questions = []
    for entry in _entries(path):
        answers: tuple[str, ...] = ()
        if "direct_answers" in entry and not entry.get("difficult_direct_answer", False):
            answers = texts(entry, "direct_answers", path)
        questions.append(Question(*_asked(entry, path), answers=answers))
    return QuestionSet(tuple(questions), find_images(questions, images, path))


def read_aokvqa_choices(path: Path, images: Path) -> QuestionSet:
    """The questions of ``aokvqa_v1p0_SPLIT.json`` with their choices.

    Raises:
        FileNotFoundError, ValueError: as ``read_aokvqa``; or the right choice is not among them.
    """
    questions = []
    for entry in _entries(path):
        choices = texts(entry, "choices", path)
        correct = index_of(entry, "correct_choice_idx", choices, path)
        questions.append(Question(*_asked(entry, path), candidates=choices, correct=correct))
    return QuestionSet(tuple(questions), find_images(questions, images, path))


def _entries(path: Path) -> list[Any]:
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: A-OKVQA's questions are a list")
    refuse_doubled((field(entry, "question_id", str, path) for entry in content), "question", path)
    return not_empty(content, path)


def _asked(entry: Any, path: Path) -> tuple[str, int, str]:
    """Question id, image id and question."""
    image_id = field(entry, "image_id", int, path)
    return entry["question_id"], image_id, field(entry, "question", str, path)
