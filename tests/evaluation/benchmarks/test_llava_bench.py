"""LLaVA-Bench: both forms of its files, the prompts of the judge, the mistakes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.benchmarks.catalogue import BENCHMARKS
from evaluation.benchmarks.folder import Asked
from evaluation.benchmarks.judged.llava_bench import OUR_RULE, Rule, judge_prompt, read_rules
from evaluation.benchmarks.records import Question, QuestionSet
from pipeline.tinyworld.judged import write_judged
from tests.evaluation.benchmarks.tiny_benchmarks import edit


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    write_judged(folder, 2, seed=0)
    return folder


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "copy"))


def load(data: Path, name: str) -> QuestionSet:
    asked = BENCHMARKS[name].load(data)
    assert isinstance(asked, Asked)
    return asked.questions


def test_questions_have_a_category_a_context_and_a_reference(world: Path) -> None:
    wild, coco = load(world, "llava_bench"), load(world, "llava_bench_coco")
    for asked in (wild, coco):
        assert [q.question_id for q in asked.questions] == list(range(6))
        assert [q.question_type for q in asked.questions] == ["conv", "detail", "complex"] * 2
        assert all(len(q.answers) == 1 and q.context for q in asked.questions)
    assert wild.images["001"] == world / "llava_bench/images/001.jpg"
    assert "\n" not in wild.questions[0].context
    path = coco.images["000000000001"]
    assert path == world / "llava_bench_coco/val2014/COCO_val2014_000000000001.jpg"
    said, boxes = coco.questions[0].context.split("\n\n")
    assert len(said.splitlines()) == 5
    assert all(": [" in line for line in boxes.splitlines())


def test_a_judge_is_told_everything_but_the_image() -> None:
    asked = Question(1, "i", "What is it?", ("A ring.",), context="A red ring.")
    assert judge_prompt(asked, "A star.", Rule("Helper", "Rate!")) == (
        "[Context]\nA red ring.\n\n[Question]\nWhat is it?\n\n"
        "[Helper 1]\nA ring.\n\n[End of Helper 1]\n\n"
        "[Helper 2]\nA star.\n\n[End of Helper 2]\n\n"
        "[System]\nRate!\n\n"
    )


def test_the_authors_rules_are_taken_where_they_are(tmp_path: Path) -> None:
    rules, origin = read_rules(tmp_path, {"conv", "detail"})
    assert (rules["detail"], origin) == (OUR_RULE, "this project's")
    content = {"llava_bench_conv": {"role": "A", "prompt": "x"}, "detail": {"role": "B"}}
    path = tmp_path / "rule.json"
    path.write_text(json.dumps(content))
    assert read_rules(tmp_path, {"conv"}) == ({"conv": Rule("A", "x")}, "rule.json")
    with pytest.raises(ValueError, match=r"rule\.json: field 'prompt' is missing"):
        read_rules(tmp_path, {"detail"})
    with pytest.raises(ValueError, match=r"rule\.json: no rule for category 'complex'"):
        read_rules(tmp_path, {"complex"})


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("questions", lambda c: c[1].update(question_id=0), "question id 0 is given"),
        ("questions", lambda c: c[1].pop("category") and None, "'category' is missing"),
        ("questions", lambda c: c[:1], "question 1 is not in .*questions"),
        ("context", lambda c: c[1:], r"no context for image 001\.jpg of"),
        ("context", lambda c: c[0].update(caption=3), "'caption' must be list or str, got 3"),
        ("context", lambda c: c[1].update(image="001.jpg"), r"image id 001\.jpg is given"),
        ("answers_gpt4", lambda c: c[1:], "no answer to question 0 of"),
        ("answers_gpt4", lambda c: c[1].update(question_id=0), "question id 0 is given"),
        ("answers_gpt4", lambda c: c[0].pop("text") and None, "'text' is missing"),
    ],
)
def test_mistakes_in_files_are_named(copy: Path, file: str, change: Callable, message: str) -> None:
    edit(copy / f"llava_bench/{file}.jsonl", change)
    with pytest.raises(ValueError, match=message):
        load(copy, "llava_bench")
