"""Reader of iVQA: questions about parts of instructional videos, five annotators' answers each."""

import csv
from pathlib import Path
from typing import Any

from evaluation.benchmarks.fields import not_empty
from evaluation.benchmarks.records import ImageId, Question, QuestionSet
from evaluation.benchmarks.video.files import find_video, index_videos
from pipeline.video import part_of

ANSWERS = tuple(f"answer{number}" for number in range(1, 6))
_COLUMNS = ("video_id", "start", "end", "question", *ANSWERS)


def read_ivqa(path: Path, folder: Path) -> QuestionSet:
    """The questions of ``SPLIT.csv``; the id of each is its line without the head, from 0.

    The file of a video is a whole one, ``VIDEO.mp4``, of which the seconds ``start`` to ``end`` are
    taken, or that part alone, ``VIDEO_START_END.mp4``.

    Raises:
        FileNotFoundError: the file or a video is not there.
        ValueError: a column is missing, or a field is not what it must be.
    """
    rows = read_rows(path, _COLUMNS)
    videos = index_videos(folder)
    questions: list[Question] = []
    files: dict[ImageId, Path] = {}
    for number, row in enumerate(rows):
        start, end = (_second(row, name, path, number) for name in ("start", "end"))
        name = row["video_id"]
        part = f"{name}_{row['start']}_{row['end']}"
        asks = f"{path}: question {number} asks about video {name}"
        found, file = find_video(videos, [part, name], asks, folder)
        files[part] = file if found == part else part_of(file, start, end)
        answers = tuple(row[column] for column in ANSWERS)
        questions.append(Question(number, part, row["question"], answers))
    return QuestionSet(tuple(questions), files)


def read_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file in UTF-8, which has these columns and maybe others.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is not UTF-8, has no rows, lacks a column, or a row has too few or too many
            fields.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines, strict=True)
            rows: list[dict[Any, Any]] = list(table)
    except (UnicodeDecodeError, csv.Error) as wrong:
        raise ValueError(f"{path} is not CSV in UTF-8: {wrong}") from wrong
    missing = [name for name in columns if name not in (table.fieldnames or ())]
    if missing:
        raise ValueError(f"{path}: column {missing[0]!r} is missing; it is another file or version")
    for number, row in enumerate(rows):
        if None in row or any(row[name] is None for name in columns):
            raise ValueError(f"{path}: row {number} has not as many fields as the head")
    return not_empty(rows, path)


def _second(row: dict[str, str], name: str, path: Path, number: int) -> float:
    try:
        return float(row[name])
    except ValueError as wrong:
        raise ValueError(
            f"{path}: question {number}: {name!r} is a number of seconds, got {row[name]!r:.80}"
        ) from wrong
