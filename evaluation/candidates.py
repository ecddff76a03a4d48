"""Reader of candidate answers, among which a model chooses: a list of texts, or annotations."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evaluation.benchmarks.fields import field, not_empty, read_json
from evaluation.benchmarks.video.ivqa import ANSWERS, read_rows


def read_candidates(path: Path, most: int) -> list[str]:
    """Different candidates, from the file of a user or of a benchmark.

    Args:
        path: a text file with a candidate on each line; or annotations of a split, whose most
            frequent answers are taken: VQAv2's, GQA's, MSVD-QA's and MSRVTT-QA's (``.json``) or
            iVQA's (``.csv``), of which an answer must be given twice; or the reference's labels
            (``{answer: number}``), which are taken whole. Answers of the split that is scored
            would tell the model what is asked.
        most: number of answers taken from annotations; of equally frequent ones the first stay.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it holds no text, or is not of one of the formats.
    """
    if path.suffix == ".json":
        content = read_json(path)
        if _are_labels(content):
            return sorted(content, key=content.__getitem__)
        return _most_frequent(_answers(content, path), most, 1, path)
    if path.suffix == ".csv":
        rows = read_rows(path, ANSWERS)
        given = (row[name] for row in rows for name in ANSWERS)
        return _most_frequent(given, most, 2, path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as wrong:
        raise ValueError(f"{path} is not text in UTF-8: {wrong}") from wrong
    return not_empty(dict.fromkeys(filter(None, map(str.strip, lines))), path)


def _most_frequent(answers: Iterator[str], most: int, least: int, path: Path) -> list[str]:
    """The ``most`` most frequent of the answers that are given ``least`` times."""
    counted = Counter(filter(None, map(str.strip, answers)))
    return not_empty([text for text, n in counted.most_common(most) if n >= least], path)


def _are_labels(content: Any) -> bool:
    return isinstance(content, dict) and {type(label) for label in content.values()} == {int}


def _answers(content: Any, path: Path) -> Iterator[str]:
    single = isinstance(content, dict) and "annotations" not in content
    if single or isinstance(content, list):
        for question in content.values() if single else content:
            yield field(question, "answer", str, path)
        return
    for note in field(content, "annotations", list, path):
        for one in field(note, "answers", list, path):
            yield field(one, "answer", str, path)
