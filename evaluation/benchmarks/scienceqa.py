"""Reader of the questions of ScienceQA that have an image (ScienceQA-IMG)."""

from pathlib import Path

from evaluation.benchmarks.fields import (
    field,
    index_of,
    read_json,
    refuse_doubled,
    texts,
)
from evaluation.benchmarks.records import ImageId, Question, QuestionSet
from evaluation.images.files import existing


def read_scienceqa(problems: Path, splits: Path, images: Path, split: str) -> QuestionSet:
    """The questions of one split that have an image, each with its hint as context.

    Args:
        problems: ``problems.json``, every question by its id.
        splits: ``pid_splits.json``, the ids of each split.
        images: folder with ``SPLIT/ID/image.png``.

    Raises:
        FileNotFoundError: a file or an image is not there.
        ValueError: a field is missing, an id is given twice or unknown, or the answer is not among
            the choices.
    """
    known = read_json(problems)
    names = field(read_json(splits), split, list, splits)
    refuse_doubled(names, "question", splits)
    questions: list[Question] = []
    files: dict[ImageId, Path] = {}
    for name in names:
        entry = field(known, str(name), dict, problems)
        if not entry.get("image"):
            continue
        picture = field(entry, "image", str, problems)
        # A split such as minival takes its questions, and their images, from another.
        home = str(entry.get("split", split))
        files[name] = existing(images, [f"{home}/{name}/{picture}"], problems)
        choices = texts(entry, "choices", problems)
        questions.append(
            Question(
                question_id=name,
                image_id=name,
                text=field(entry, "question", str, problems),
                question_type=str(entry.get("subject", "")),
                candidates=choices,
                correct=index_of(entry, "answer", choices, problems),
                context=str(entry.get("hint") or ""),
            )
        )
    if not questions:
        raise ValueError(f"{splits}: no question of split {split!r} has an image")
    return QuestionSet(tuple(questions), files)
