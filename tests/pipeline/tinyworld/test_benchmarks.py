"""TinyWorld's copies of the benchmarks: the same bytes for a seed, and true to the pictures."""

import json
from pathlib import Path

import pytest

from pipeline.tinyworld.benchmarks import write_benchmarks
from tests.pipeline.tinyworld.test_write import tree_digest


def test_the_bytes_follow_from_the_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_benchmarks(tmp_path / name, 3, seed)
    first, again, other = (tree_digest(tmp_path / name) for name in "abc")
    assert first == again
    assert first.keys() == other.keys()
    assert first != other


def test_a_benchmark_needs_two_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2 pictures"):
        write_benchmarks(tmp_path, 1, 0)


def test_both_classes_and_the_right_options_are_there(tmp_path: Path) -> None:
    write_benchmarks(tmp_path, 12, 0)
    for file in ("hatefulmemes/dev.jsonl", "vsr/splits/zeroshot/test.jsonl"):
        rows = [json.loads(line) for line in (tmp_path / file).read_text().splitlines()]
        assert {row["label"] for row in rows} == {0, 1}
    content = json.loads((tmp_path / "visdial/visdial_1.0_val.json").read_text())["data"]
    for dialog in content["dialogs"]:
        assert len(dialog["dialog"]) == 10
        for turn in dialog["dialog"]:
            assert len(set(turn["answer_options"])) == 100
            assert turn["answer_options"][turn["gt_index"]] == turn["answer"]
            assert not content["questions"][turn["question"]].endswith("?")
