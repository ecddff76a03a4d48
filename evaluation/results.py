"""The scores in ``results.json`` of ``jobs/evaluate.py``: printed, and beside the paper's."""

from collections.abc import Mapping
from typing import Any

from evaluation import tables
from evaluation.benchmarks.catalogue import BENCHMARKS
from evaluation.scores.answers import FEWEST_ANSWERS

TASKS = tuple(dict.fromkeys(("caption", "vqa", "gqa", "retrieval", *BENCHMARKS)))


def paper_metrics(table: str | int, results: dict[str, Any]) -> dict[str, float]:
    """The measured scores under the names that the metrics have in a published table."""
    return {name: value for name, (value, _) in tables.measured(table, results).items()}


def beside_paper(
    results: dict[str, Any],
) -> tuple[tables.Row, list[tables.Comparison]] | None:
    """The published row that the results ask for, and ours beside it; None: none is asked for.

    Raises:
        ValueError: no such table or row.
    """
    if "table" not in results:
        return None
    row = tables.find_row(results["table"], results["row"])
    return row, tables.beside(row, results)


def print_results(results: dict[str, Any], notes: bool = True) -> None:
    """Print every number as a line of a table, then the notes."""
    for task in TASKS:
        intervals = results.get(task, {}).get("intervals", {})
        for key, value in _flat(shown(results.get(task, {}))):
            number = f"{value:>10.3f}" if isinstance(value, float) else f"{value:>6}"
            ends = intervals.get(key)
            interval = f"   {ends[0]:.3f} to {ends[1]:.3f}" if ends else ""
            print(f"{task + '.' + key:44}{number}{interval}")
    for task in TASKS if notes else ():
        for note in results.get(task, {}).get("notes", []):
            print(f"note: {note} ({task})")


def shown(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores that are shown: exact match only where VQA accuracy has too few references."""
    enough = scores.get("fewest_answers", 0) >= FEWEST_ANSWERS
    hidden = ("intervals", *(("exact_match", "fewest_answers") if enough else ()))
    return {key: value for key, value in scores.items() if not key.startswith(hidden)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    lines: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            lines.append((prefix + key, value))
    return lines
