"""What ``results.json`` of ``jobs/evaluate.py`` holds, printed and beside the paper's tables."""

from collections.abc import Mapping
from typing import Any

from evaluation.scores.metrics import FEWEST_ANSWERS

TASKS = ("caption", "vqa", "gqa", "retrieval")
# The paper's metric that a task's score stands for; which one of a table depends on the data given.
_PAPER_METRIC = {(2, "vqa"): "vqav2.val", (2, "gqa"): "gqa.test-dev", (4, "vqa"): "vqav2.test-dev"}
_CAPTION_METRICS = {"coco.bleu4": "bleu4", "coco.cider": "cider"}


def paper_metrics(table: int, results: dict[str, Any]) -> dict[str, float]:
    """Our scores under the names of the paper's metrics, as far as they were measured."""
    ours: dict[str, float] = {}
    for task in ("vqa", "gqa"):
        measured = "accuracy" in results.get(task, {})
        if measured and (table, task) in _PAPER_METRIC:
            ours[_PAPER_METRIC[table, task]] = results[task]["accuracy"]
    if table == 3 and "cider" in results.get("caption", {}):
        domains = results["caption"].get("domains")
        if domains:
            short = {name: name.removesuffix("-domain") for name in domains}
            ours = {f"nocaps.{short[name]}.cider": domains[name]["cider"] for name in domains}
            ours["nocaps.overall.cider"] = results["caption"]["cider"]
        else:
            ours = {name: results["caption"][key] for name, key in _CAPTION_METRICS.items()}
    if table == 5 and "retrieval" in results:
        scores = results["retrieval"]
        ours = {f"coco.{key}": scores[key] for key in scores if key[:4] in ("tr_r", "ir_r")}
    return ours


def print_results(results: dict[str, Any], notes: bool = True) -> None:
    """Every scalar as a line of a table, then what a reader must know."""
    for task in TASKS:
        for key, value in _flat(shown(results.get(task, {}))):
            number = f"{value:>10.3f}" if isinstance(value, float) else f"{value:>6}"
            print(f"{task + '.' + key:44}{number}")
    for task in TASKS if notes else ():
        for note in results.get(task, {}).get("notes", []):
            print(f"note: {note} ({task})")


def shown(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores without exact match where VQA accuracy has the references that it needs."""
    enough = scores.get("fewest_answers", 0) >= FEWEST_ANSWERS
    hidden = ("exact_match", "fewest_answers") if enough else ()
    return {key: value for key, value in scores.items() if not key.startswith(hidden)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    lines: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            lines.append((prefix + key, value))
    return lines
