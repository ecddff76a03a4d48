"""Candidate answers from a list of texts, from annotations and from questions."""

import json
from pathlib import Path

import pytest

from evaluation.candidates import read_candidates


def test_a_line_is_a_candidate(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_bytes("\ufeffyes\r\n no \n\nun café\nyes\n".encode())
    assert read_candidates(path, 1) == ["yes", "no", "un café"]  # a list is taken whole


def test_the_most_frequent_answers_of_annotations(tmp_path: Path) -> None:
    said = [["no", "yes", "yes"], ["2", "yes", " "], ["no", "2", "red"]]
    notes = [{"answers": [{"answer": one} for one in answers]} for answers in said]
    path = tmp_path / "vqa.json"
    path.write_text(json.dumps({"annotations": notes}))
    assert read_candidates(path, 3) == ["yes", "no", "2"]
    asked = {str(n): {"answer": one} for n, one in enumerate(["no", "yes", "yes"])}
    gqa = tmp_path / "gqa.json"
    gqa.write_text(json.dumps(asked))
    assert read_candidates(gqa, 9) == ["yes", "no"]


def test_files_without_candidates_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_candidates(tmp_path / "none.txt", 9)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"empty\.txt holds no entries"):
        read_candidates(tmp_path / "empty.txt", 9)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"latin\.txt is not text in UTF-8"):
        read_candidates(tmp_path / "latin.txt", 9)
    for content, match in (
        ({"annotations": [{}]}, "field 'answers' is missing"),
        ({"1": {"question": "what?"}}, "field 'answer' is missing"),
        ([1], "field 'answer' is missing in 1"),
    ):
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=match):
            read_candidates(tmp_path / "a.json", 9)
