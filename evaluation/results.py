"""The scores in ``results.json`` of ``jobs/evaluate.py``: printed, and beside the paper's."""

from collections.abc import Mapping
from typing import Any

from evaluation import tables
from evaluation.benchmarks.catalogue import BENCHMARKS
from evaluation.scores.answers import FEWEST_ANSWERS

TASKS = tuple(dict.fromkeys(("caption", "vqa", "gqa", "retrieval", *BENCHMARKS)))
# Name in the paper's tables of the score of a task, by table.
_PAPER_METRIC = {
    (2, "vqa"): "vqav2.val",
    (2, "vqav2"): "vqav2.val",
    (2, "okvqa"): "okvqa.test",
    (2, "gqa"): "gqa.test-dev",
    (4, "vqa"): "vqav2.test-dev",
}
_RETRIEVAL = {"retrieval": "coco", "coco_retrieval": "coco", "flickr30k_retrieval": "flickr30k"}
_CAPTION_METRICS = {"coco.bleu4": "bleu4", "coco.cider": "cider"}


def paper_metrics(table: int, results: dict[str, Any]) -> dict[str, float]:
    """The measured scores under the names that the metrics have in a table of the paper."""
    ours: dict[str, float] = {}
    for task in ("vqa", "vqav2", "okvqa", "gqa"):
        measured = "accuracy" in results.get(task, {})
        if measured and (table, task) in _PAPER_METRIC:
            ours[_PAPER_METRIC[table, task]] = results[task]["accuracy"]
    for task in ("caption", "coco", "nocaps") if table == 3 else ():
        ours |= _paper_captions(results.get(task, {}))
    for task, data in _RETRIEVAL.items() if table == 5 else ():
        scores = results.get(task, {})
        ours |= {f"{data}.{key}": scores[key] for key in scores if key[:4] in ("tr_r", "ir_r")}
    return ours


def _paper_captions(scores: Mapping[str, Any]) -> dict[str, float]:
    """The scores of captions under their names in table 3: NoCaps' where there are domains."""
    if "cider" not in scores:
        return {}
    domains = scores.get("domains")
    if not domains:
        return {name: scores[key] for name, key in _CAPTION_METRICS.items()}
    short = {name: name.removesuffix("-domain") for name in domains}
    by_domain = {f"nocaps.{short[name]}.cider": domains[name]["cider"] for name in domains}
    return by_domain | {"nocaps.overall.cider": scores["cider"]}


def beside_paper(
    results: dict[str, Any],
) -> tuple[tables.Row, list[tables.Comparison]] | None:
    """The row of the paper that the results ask for, and ours beside it; None: none is asked for.

    Raises:
        ValueError: no such table or row.
    """
    if "table" not in results:
        return None
    row = tables.find_row(results["table"], results["row"])
    return row, tables.compare(row, paper_metrics(row.table, results))


def print_results(results: dict[str, Any], notes: bool = True) -> None:
    """Print every number as a line of a table, then the notes."""
    for task in TASKS:
        for key, value in numbers(results.get(task, {})):
            number = f"{value:>10.3f}" if isinstance(value, float) else f"{value:>6}"
            print(f"{task + '.' + key:44}{number}")
    for task in TASKS if notes else ():
        for note in results.get(task, {}).get("notes", []):
            print(f"note: {note} ({task})")


def numbers(scores: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Every number of a task's scores that is shown, with its name; parts are joined by dots."""
    return _flat(shown(scores))


def shown(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores that are shown: exact match only where VQA accuracy has too few references."""
    enough = scores.get("fewest_answers", 0) >= FEWEST_ANSWERS
    hidden = ("made_with", "intervals", *(("exact_match", "fewest_answers") if enough else ()))
    return {key: value for key, value in scores.items() if not key.startswith(hidden)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    lines: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            lines.append((prefix + key, value))
    return lines
