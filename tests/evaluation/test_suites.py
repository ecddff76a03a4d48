"""Suites: lists of tasks with their options, as files."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from evaluation.suites import read_suite, suite_names
from jobs.evaluation.arguments import EvaluateArgs, Task
from jobs.evaluation.suite import changed, options_of_tasks

KNOWN = get_args(Task)


def args(data: Path, suite: str = "tinyworld") -> EvaluateArgs:
    return EvaluateArgs(Path("run"), data, suite=suite)


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_of_the_project_can_be_applied(tmp_path: Path, name: str) -> None:
    suite = read_suite(name, KNOWN)
    assert suite.about and suite.tasks
    for task, options in suite.tasks.items():
        changed(args(tmp_path), options, task)


def test_the_project_has_the_suites_that_it_names() -> None:
    assert suite_names() == ["instruct", "nightly", "paper", "tinyworld"]
    assert {"vqav2", "okvqa", "gqa", "nocaps"} <= set(read_suite("paper", KNOWN).tasks)


def test_options_of_a_suite_replace_those_of_the_command_line(tmp_path: Path) -> None:
    for name in ("annotations", "coco", "okvqa"):
        (tmp_path / name).mkdir()
    found = options_of_tasks(args(tmp_path), "stage1")
    assert list(found) == ["retrieval", "coco_retrieval"]
    assert (found["retrieval"].retrieval.k, found["retrieval"].retrieval.rerank) == (16, "odds")
    assert found["coco_retrieval"].retrieval.captions is None
    own = tmp_path / "mine.toml"
    own.write_text('[tasks.okvqa]\nprompts = "instruct"\nlimit = 5\n[tasks.coco]\nsplit = "val"\n')
    found = options_of_tasks(args(tmp_path, str(own)), "stage2")
    assert (found["okvqa"].scoring.prompts, found["okvqa"].limit) == ("instruct", 5)
    assert (found["coco"].split, found["coco"].scoring.prompts) == ("val", "model")
    assert read_suite(str(own), KNOWN).digest != read_suite("paper", KNOWN).digest


def test_tasks_without_data_are_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gqa").mkdir()
    assert list(options_of_tasks(args(tmp_path, "nightly"), "stage2")) == ["gqa"]
    said = capsys.readouterr().err
    assert "for coco, okvqa, nocaps, vsr, scienceqa; left out" in said
    with pytest.raises(ValueError, match="none of its tasks for a stage1 checkpoint has data"):
        options_of_tasks(args(tmp_path, "nightly"), "stage1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tasks.vqa3]", "unknown task 'vqa3'; known are aokvqa"),
        ("[tasks", "is not TOML"),
        ('about = "x"', "it has no tasks"),
        ("task = 1\n[tasks.vqa]", "it has task"),
        ("tasks.vqa = 1", r"tasks\.vqa must be a table"),
        ('[tasks.vqa]\nprompt = "x"', r"tasks\.vqa: unknown option 'prompt'; known are split"),
        ('[tasks.vqa]\nprompts = "mine"', r"tasks\.vqa\.prompts: 'mine' .* takes: model, instruct"),
        ("[tasks.retrieval]\nk = true", "True is not what it takes"),
    ],
)
def test_wrong_suites_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        suite = read_suite(str(path), KNOWN)
        for task, options in suite.tasks.items():
            changed(args(tmp_path), options, f"tasks.{task}")


def test_tasks_and_a_suite_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --tasks or --suite"):
        replace(args(tmp_path), tasks=("vqa",))
    with pytest.raises(ValueError, match="no such suite; give one of instruct, nightly"):
        read_suite("daily", KNOWN)
