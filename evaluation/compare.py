"""Two evaluations of the same questions compared in pairs, from their output folders.

Each score that both have: the difference, its 95 % interval and p (``evaluation.intervals.pairs``).
Nothing is answered or scored again; the folders hold what was observed of every item.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.storage.base import Storage
from cluster.storage.open import open_storage
from evaluation.intervals.items import from_json, items_name
from evaluation.intervals.observed import Observed
from evaluation.intervals.pairs import Difference, NotComparable, compare_pairs

_HEAD = ("score", "first", "second", "difference", "95 % interval", "p")


@dataclass(frozen=True)
class RunComparison:
    """What was compared of two runs.

    Attributes:
        first, second: folders or URLs of the two evaluations.
        tasks: differences by task; the second run minus the first.
        notes: tasks that were not compared, and why.
    """

    first: str
    second: str
    tasks: Mapping[str, Sequence[Difference]]
    notes: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """The comparison as plain data, for a file of its own or for ``results.json``."""
        tasks = {
            task: {one.score: asdict(one) | {"difference": one.value} for one in differences}
            for task, differences in self.tasks.items()
        }
        return {"first": self.first, "second": self.second, "tasks": tasks, "notes": [*self.notes]}


def compare_runs(first: str, second: str, seed: int = 0) -> RunComparison:
    """The paired comparison of two output folders of ``jobs/evaluate.py``.

    Args:
        first, second: folders or ``s3://`` URLs.
        seed: seed of resamples and swaps.

    Raises:
        FileNotFoundError: one is no evaluation.
        NotComparable: the runs have no task in common, answered different questions, or were
            scored by different metrics.
        ValueError: a file is damaged, or of another version.
    """
    stores = open_storage(first), open_storage(second)
    results = [_results(store) for store in stores]
    names = [_scored(found) for found in results]
    shared = [task for task in names[0] if task in names[1]]
    if not shared:
        told = [", ".join(of_one) or "none" for of_one in names]
        raise NotComparable(
            f"the runs have no task in common: {first} has {told[0]}, {second} has {told[1]}"
        )
    notes = [
        f"{task} is in {where} alone and was not compared"
        for where, ours, theirs in ((first, *names), (second, *names[::-1]))
        for task in ours
        if task not in theirs
    ]
    tasks = {}
    for task in shared:
        _same_scoring(task, *results)
        ours, theirs = (_items(*pair, task) for pair in zip(stores, results, strict=True))
        tasks[task] = compare_parts(task, ours, theirs, seed)
    return RunComparison(first, second, tasks, notes)


def compare_parts(
    task: str, first: Sequence[Observed], second: Sequence[Observed], seed: int = 0
) -> list[Difference]:
    """The differences of all scores of a task.

    Raises:
        NotComparable: the runs answered different items.
    """
    try:
        pairs = zip(first, second, strict=True)
        return [found for a, b in pairs for found in compare_pairs(a, b, seed)]
    except NotComparable as other:
        raise NotComparable(f"{task}: {other}") from other


def render_comparison(found: RunComparison) -> str:
    """The comparison as aligned text."""
    lines = [f"first:  {found.first}", f"second: {found.second}"]
    rows: list[tuple[str, ...]] = [_HEAD]
    rows += [row for task, of_task in found.tasks.items() for row in cells(task, of_task)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        name, *numbers = (text.rjust(width) for text, width in zip(row, widths, strict=True))
        lines.append("  ".join([name.strip().ljust(widths[0]), *numbers]))
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def cells(task: str, differences: Sequence[Difference]) -> list[tuple[str, ...]]:
    """The printed cells of each score: name, both runs, difference, interval, p."""
    return [
        (
            f"{task}.{one.score}",
            f"{one.first:.3f}",
            f"{one.second:.3f}",
            f"{one.value:+.3f}" if one.value else "0",
            "–" if one.interval is None else f"{one.interval[0]:+.3f} to {one.interval[1]:+.3f}",
            format_p(one.p),
        )
        for one in differences
    ]


def format_p(p: float) -> str:
    """A p-value for people."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.9995 else "1"


def _results(store: Storage) -> dict[str, Any]:
    if not store.exists("results.json"):
        raise FileNotFoundError(f"{store.url} holds no results.json: not an evaluation")
    return json.loads(store.read("results.json"))


def _scored(results: Mapping[str, Any]) -> list[str]:
    """The tasks that have scores with intervals."""
    return [
        task for task, scores in results.items()
        if isinstance(scores, dict) and "intervals" in scores
    ]  # fmt: skip


def _same_scoring(task: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Refuse scores that are not of the same kind."""
    for key in ("metric", "rerank"):
        ours, theirs = first[task].get(key), second[task].get(key)
        if ours != theirs:
            raise NotComparable(
                f"{task}: {key} is {ours} in the first run and {theirs} in the second; score one "
                "of them again as the other"
            )


def _items(store: Storage, results: Mapping[str, Any], task: str) -> list[Observed]:
    split = results[task].get("split", results.get("split", ""))
    name = items_name(task, split)
    if not store.exists(name):
        raise FileNotFoundError(
            f"{store.url} holds no {name}, which a comparison needs; score the run again"
        )
    try:
        content = json.loads(store.read(name))
    except ValueError as broken:
        raise ValueError(f"{store.url}/{name} is damaged ({broken}); score the run again") from None
    return from_json(content, f"{store.url}/{name}")
