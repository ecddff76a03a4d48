"""Reader of MSVD-QA and MSRVTT-QA: questions about short videos, with one answer each.

Both are read from their authors' files (``test_qa.json``) and from those of the reference
(``qa_test.json``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.benchmarks.fields import (
    field,
    first_file,
    not_empty,
    read_json,
    refuse_doubled,
)
from evaluation.benchmarks.records import ImageId, Question, QuestionSet
from evaluation.benchmarks.video.files import find_video, index_videos
from evaluation.candidates import read_candidates

_MAPPING = "youtube_mapping.txt"


def read_videoqa(folder: Path, split: str) -> QuestionSet:
    """The questions of a split; the type of each is its first word (what, who, how, when, where).

    An entry has ``question`` and ``answer`` (none in a test set without answers), and the video as
    ``video_id`` (a number; MSVD's ``youtube_mapping.txt`` gives its file's name) or ``video`` (the
    name of a file). The id of a question is ``id`` or ``question_id``; else its place, from 0.

    Raises:
        FileNotFoundError: a file or a video is not there.
        ValueError: a field is missing, or a question id is given twice.
    """
    path = first_file(folder, [f"{split}_qa.json", f"qa_{split}.json"])
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: questions about videos are a list")
    entries = not_empty(content, path)
    key = next((name for name in ("id", "question_id") if name in entries[0]), None)
    keys = [field(e, key, (int, str), path) for e in entries] if key else [*range(len(entries))]
    refuse_doubled(keys, "question", path)
    names, videos = _read_mapping(folder / _MAPPING), index_videos(folder)
    questions: list[Question] = []
    files: dict[ImageId, Path] = {}
    for number, entry in zip(keys, entries, strict=True):
        wanted = _names(entry, names, path)
        asks = f"{path}: question {number} asks about video {wanted[0]}"
        video, file = find_video(videos, wanted, asks, folder)
        files[video] = file
        text = field(entry, "question", str, path)
        answers = (field(entry, "answer", str, path),) if "answer" in entry else ()
        kind = (text.split() or [""])[0].lower()
        questions.append(Question(number, video, text, answers, question_type=kind))
    return QuestionSet(tuple(questions), files)


def training_answers(folder: Path, most: int) -> tuple[str, ...]:
    """The answers among which a model chooses: those of the training split.

    Args:
        most: number of the most frequent answers that are taken. The reference's
            ``train_ans2label.json``, where it is there, is taken whole.

    Raises:
        FileNotFoundError: the folder has no file of training answers.
        ValueError: the file is not of one of the formats.
    """
    names = ["train_ans2label.json", "train_qa.json", "qa_train.json"]
    return tuple(read_candidates(first_file(folder, names), most))


def _names(entry: Any, mapping: Mapping[str, str], path: Path) -> list[str]:
    """The names, without suffix, that the file of an entry's video may have."""
    if "video" in entry:
        return [Path(field(entry, "video", str, path)).stem]
    video = str(field(entry, "video_id", (int, str), path))
    if not mapping:
        return [f"video{video}", video, f"vid{video}"]
    if f"vid{video}" not in mapping:
        raise ValueError(f"{path}: video {video} is not in {path.with_name(_MAPPING)}")
    return [mapping[f"vid{video}"], f"vid{video}"]


def _read_mapping(path: Path) -> dict[str, str]:
    """File names by ``vidNUMBER``, from lines ``NAME vidNUMBER``; empty where there is no file."""
    if not path.is_file():
        return {}
    pairs = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None:
        raise ValueError(f"{path}: a line is a name and vidNUMBER, got {' '.join(wrong)!r:.80}")
    refuse_doubled((number for _, number in pairs), "video", path)
    return {number: name for name, number in pairs}
