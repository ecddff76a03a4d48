"""Suites: named lists of tasks with their prompts, decoding and metrics, as TOML files.

    about = "one sentence"

    [tasks.gqa]                 # a task of jobs/evaluate.py
    prompts = "instruct"        # and options of it, as on the command line with _ for -

A suite of one's own is a file of this form. The suites of this folder: ``paper`` (BLIP-2's tables),
``instruct`` (InstructBLIP's), ``nightly`` (a few benchmarks for every checkpoint), ``tinyworld``.
"""

import hashlib
import json
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Suite:
    """A list of tasks, each with its options.

    Attributes:
        name: name of the suite: that of its file.
        about: a sentence on it.
        tasks: options of each task by name, in the order in which they are run.
    """

    name: str
    about: str
    tasks: Mapping[str, Mapping[str, Any]]

    @property
    def digest(self) -> str:
        """The first 8 digits of the sha256 of its tasks and options."""
        text = json.dumps({name: dict(self.tasks[name]) for name in self.tasks}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def suite_names() -> list[str]:
    """The names of the suites that are part of the project."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def read_suite(name: str, known: Collection[str]) -> Suite:
    """A suite of the project by its name, or of one's own by its file.

    Args:
        known: names of all tasks.

    Raises:
        ValueError: there is no such suite, the file is no suite, or a task is unknown.
    """
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    if not path.is_file():
        raise ValueError(
            f"--suite {name}: no such suite; give one of {', '.join(suite_names())} or a file.toml"
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as broken:
        raise ValueError(f"--suite {path} is not TOML: {broken}") from broken
    unknown = sorted(content.keys() - {"about", "tasks"})
    tasks = content.get("tasks")
    if unknown or not isinstance(tasks, dict) or not tasks:
        found = f"it has {', '.join(unknown)}" if unknown else "it has no tasks"
        raise ValueError(
            f"--suite {path}: {found}; a suite has a text `about` and tables [tasks.NAME]"
        )
    for task, options in tasks.items():
        if task not in known:
            raise ValueError(
                f"--suite {path}: unknown task {task!r}; known are {', '.join(sorted(known))}"
            )
        if not isinstance(options, dict):
            raise ValueError(f"--suite {path}: tasks.{task} must be a table of options")
    return Suite(path.stem, str(content.get("about", "")), tasks)
