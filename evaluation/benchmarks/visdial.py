"""Reader of Visual Dialog 1.0: ten rounds about an image, 100 options for each answer."""

from collections.abc import Sequence
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


def round_key(image_id: int, round_id: int) -> str:
    """Question id of a round; rounds count from 1."""
    return f"{image_id}-{round_id}"


def read_visdial(path: Path, dense: Path | None, images: Path) -> QuestionSet:
    """The rounds of ``visdial_1.0_SPLIT.json`` that have options, with the dialog before each.

    A round's context is the image's caption and the earlier turns. The test set asks one round of
    each image and tells no answer.

    Args:
        dense: ``visdial_1.0_SPLIT_dense_annotations.json``, with the relevance of each option in
            one round of an image; None: no relevances, and no NDCG.

    Raises:
        FileNotFoundError: a file or an image is not there.
        ValueError: a field is missing, an index is out of range, or an id is given twice.
    """
    data = field(read_json(path), "data", dict, path)
    asked, said = texts(data, "questions", path), texts(data, "answers", path)
    dialogs = field(data, "dialogs", list, path)
    refuse_doubled((field(one, "image_id", int, path) for one in dialogs), "image", path)
    relevance = {} if dense is None else _read_relevance(dense)
    questions: list[Question] = []
    for dialog in dialogs:
        history = [f'This image has the caption "{field(dialog, "caption", str, path)}".']
        for number, turn in enumerate(field(dialog, "dialog", list, path), 1):
            (question,) = _pick([field(turn, "question", int, path)], asked, path)
            text = question.removesuffix("?") + "?"  # the files leave the mark out
            if "answer_options" in turn:
                options = _pick(field(turn, "answer_options", list, path), said, path)
                key = round_key(dialog["image_id"], number)
                questions.append(
                    Question(
                        question_id=key,
                        image_id=dialog["image_id"],
                        text=text,
                        candidates=options,
                        correct=index_of(turn, "gt_index", options, path),
                        relevance=relevance.pop(key, ()),
                        context=" ".join(history),
                    )
                )
            if turn.get("answer") is not None:
                (answer,) = _pick([field(turn, "answer", int, path)], said, path)
                history.append(f"q: {text} a: {answer}")
    wrong = next((q for q in questions if len(q.relevance) not in (0, len(q.candidates))), None)
    if wrong is not None:
        raise ValueError(
            f"{dense}: round {wrong.question_id} has {len(wrong.relevance)} relevances for "
            f"{len(wrong.candidates)} options"
        )
    if relevance:
        raise ValueError(f"{dense}: round {next(iter(relevance))} is not in {path}")
    return QuestionSet(tuple(not_empty(questions, path)), find_images(questions, images, path))


def _pick(indices: Sequence[Any], among: Sequence[str], path: Path) -> tuple[str, ...]:
    """The texts that the indices point at."""
    wrong = next((i for i in indices if type(i) is not int or not 0 <= i < len(among)), None)
    if wrong is not None:
        raise ValueError(f"{path}: index {wrong!r:.80} points at none of {len(among)} texts")
    return tuple(among[index] for index in indices)


def _read_relevance(path: Path) -> dict[str, tuple[float, ...]]:
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: dense annotations are a list")
    keys = [
        round_key(field(one, "image_id", int, path), field(one, "round_id", int, path))
        for one in entries
    ]
    refuse_doubled(keys, "round", path)
    # The training set's file calls the same thing "relevance".
    values = (
        field(one, "gt_relevance" if "gt_relevance" in one else "relevance", list, path)
        for one in entries
    )
    return {key: tuple(map(float, of)) for key, of in zip(keys, values, strict=True)}
