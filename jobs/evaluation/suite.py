"""The options of each task: those of the command line, changed by a suite's."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from evaluation.benchmarks.catalogue import BENCHMARKS
from evaluation.suites import Suite, read_suite
from jobs.evaluation.arguments import EvaluateArgs, Task

_OWN = ("split", "limit", "batch_size")  # options of EvaluateArgs itself that a suite may set
_GROUPS = ("answering", "retrieval", "scoring", "judging", "further")
_COMMON = {"caption": "annotations", "vqa": "annotations", "retrieval": "annotations"}


def suite_of(args: EvaluateArgs) -> Suite | None:
    """The suite that the options name; None: they name tasks.

    Raises:
        ValueError: there is no such suite, or it is not what it must be.
    """
    return None if args.suite is None else read_suite(args.suite, get_args(Task))


def options_of_tasks(args: EvaluateArgs, stage: str) -> dict[str, EvaluateArgs]:
    """The options of each task that is run, by its name.

    Of a suite, only the tasks for the checkpoint's stage are run, and those whose data are there; a
    line says which others there are.

    Args:
        stage: kind of the checkpoint.

    Raises:
        ValueError: a suite is not what it must be, or none of its tasks can be run.
    """
    suite = suite_of(args)
    if suite is None:
        return dict.fromkeys(args.tasks, args)
    fitting = {task: options for task, options in suite.tasks.items() if stage_of(task) == stage}
    absent = [task for task in fitting if not has_data(args, task)]
    if absent:
        print(
            f"note: suite {suite.name}: no data in {args.data} for {', '.join(absent)}; left out",
            file=sys.stderr,
        )
    chosen = {task: options for task, options in fitting.items() if task not in absent}
    if not chosen:
        raise ValueError(
            f"--suite {suite.name}: none of its tasks for a {stage} checkpoint has data in "
            f"{args.data}; lay the benchmarks' folders there (docs/evaluation.md)"
        )
    where = f"--suite {args.suite}"
    return {task: changed(args, chosen[task], f"{where}: tasks.{task}") for task in chosen}


def folders_of(args: EvaluateArgs) -> tuple[str, ...]:
    """The names of the folders of the data that the tasks may read."""
    suite = suite_of(args)
    names: dict[str, None] = {}
    for task in suite.tasks if suite else args.tasks:
        benchmark = BENCHMARKS.get(task)
        if benchmark is not None:
            names |= dict.fromkeys((benchmark.shares or benchmark.name, "coco"))
        if benchmark is None or task == "gqa":
            names |= dict.fromkeys(("annotations", "images"))
    return tuple(names)


def stage_of(task: str) -> str:
    """The kind of checkpoint that a task needs."""
    return "stage1" if task.endswith("retrieval") else "stage2"


def has_data(args: EvaluateArgs, task: str) -> bool:
    """Whether the folder of a task's files is there."""
    if task == "gqa" and not (args.data / "gqa").is_dir():
        return any((args.data / "annotations").glob("gqa_*_questions.json"))
    if task in _COMMON:
        return (args.data / _COMMON[task]).is_dir()
    benchmark = BENCHMARKS[task]
    return (args.data / (benchmark.shares or benchmark.name)).is_dir()


def changed(args: EvaluateArgs, options: Mapping[str, Any], where: str) -> EvaluateArgs:
    """The options of the command line with those of one task of a suite in their place.

    Raises:
        ValueError: an option is unknown, or its value is none that it takes.
    """
    own = {name: options[name] for name in _OWN if name in options}
    left = {name: value for name, value in options.items() if name not in own}
    groups: dict[str, Any] = {}
    for group in _GROUPS:
        part = getattr(args, group)
        hints = get_type_hints(type(part))
        mine = {name: left.pop(name) for name in list(left) if name in hints}
        for name, value in mine.items():
            _check(hints[name], value, f"{where}.{name}")
        groups[group] = dataclasses.replace(part, **mine)
    if left:
        known = [*_OWN, *(name for group in _GROUPS for name in vars(getattr(args, group)))]
        raise ValueError(
            f"{where}: unknown option {next(iter(left))!r}; known are {', '.join(known)}"
        )
    return dataclasses.replace(args, **own, **groups)


def _check(hint: Any, value: Any, where: str) -> None:
    """Refuse a value that an option does not take."""
    if isinstance(value, bool) and hint is not bool:
        raise ValueError(f"{where}: {value!r} is not what it takes: {hint}")
    choices = [hint, *get_args(hint)]
    listed = [word for one in choices if get_origin(one) is Literal for word in get_args(one)]
    plain = tuple(one for one in choices if isinstance(one, type) and one is not type(None))
    if (listed and value in listed) or (plain and isinstance(value, plain)):
        return
    expected = ", ".join(map(str, listed)) or " or ".join(one.__name__ for one in plain)
    raise ValueError(f"{where}: {value!r} is not what it takes: {expected}")
