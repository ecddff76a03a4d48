"""Reader of candidate answers, among which a model chooses: a list of texts, or annotations."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from evaluation.benchmarks.fields import field, not_empty, read_json


def read_candidates(path: Path, most: int) -> list[str]:
    """Different candidates, from the file of a user or of a benchmark.

    Args:
        path: a text file with a candidate on each line, or (``.json``) a split's annotations in
            VQAv2's format or questions in GQA's, whose most frequent answers are taken. Answers
            of the split that is scored would tell the model what is asked.
        most: number of answers taken from annotations; of equally frequent ones the first stay.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it holds no text, or is not of one of the formats.
    """
    if path.suffix == ".json":
        answers = (answer.strip() for answer in _answers(path))
        counted = Counter(answer for answer in answers if answer)
        return not_empty([answer for answer, _ in counted.most_common(most)], path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as wrong:
        raise ValueError(f"{path} is not text in UTF-8: {wrong}") from wrong
    return not_empty(dict.fromkeys(filter(None, map(str.strip, lines))), path)


def _answers(path: Path) -> Iterator[str]:
    content = read_json(path)
    if isinstance(content, dict) and "annotations" not in content:
        for question in content.values():
            yield field(question, "answer", str, path)
        return
    for note in field(content, "annotations", list, path):
        for one in field(note, "answers", list, path):
            yield field(one, "answer", str, path)
