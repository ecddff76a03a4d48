"""The tour's results: the targets that they are held to, the table, and the page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.report.evaluations import read_evaluation
from evaluation.report.machine import hardware
from evaluation.report.names import readable
from evaluation.report.overview import arithmetic_facts, captioned, control, duration
from evaluation.report.page import Facts, Overview, Report, Result, Results, write_report
from evaluation.report.sections import sections_of
from pipeline.tinyworld.scene import Scene

FAMILIES = ("t5", "opt")
SECTIONS = ("capfilt", "retrieval", "caption", "vqa")
_STAGES = {
    "capfilt": "CapFilt",
    "stage1": "stage 1",
    "stage2_t5": "stage 2 with T5",
    "stage2_opt": "stage 2 with OPT",
}


def read_results(folder: Path) -> dict[str, Any]:
    """Scores that an evaluation wrote to its folder."""
    return json.loads((folder / "results.json").read_text())


def targets(results: dict[str, Any]) -> list[tuple[str, float, str, bool]]:
    """The measured values that have a target.

    Returns:
        For each the key, the value, the target in words, and whether the value reaches it.
    """
    rows = [
        ("capfilt.right_before", results["capfilt"]["right_before"], "about 0.5", 0.4, 0.6),
        ("capfilt.right_after", results["capfilt"]["right_after"], "≥ 0.85", 0.85, 1.0),
        ("retrieval.tr_r1", results["retrieval"]["tr_r1"], "≥ 0.40", 0.40, 1.0),
        ("retrieval.ir_r1", results["retrieval"]["ir_r1"], "≥ 0.40", 0.40, 1.0),
    ]
    inf = float("inf")
    for family in FAMILIES:
        caption = results["caption"][family]
        least = 3 * caption["shuffled_cider"]
        rows.append((f"caption.{family}.cider", caption["cider"], f"≥ {least:.3f}", least, inf))
    blind = results["vqa"]["t5"]["blind"] + 0.20
    rows.append(("vqa.t5.accuracy", results["vqa"]["t5"]["accuracy"], f"≥ {blind:.3f}", blind, inf))
    return [(key, value, says, low <= value <= high) for key, value, says, low, high in rows]


def print_table(results: dict[str, Any]) -> None:
    """Print every score, with its target where it has one."""
    says = {key: (must, holds) for key, _, must, holds in targets(results)}
    print(f"\n{'':28}{'measured':>10}   must be")
    for section in SECTIONS:
        for key, value in _flat(section, results[section]):
            must, holds = says.get(key, ("", True))
            verdict = "" if not must else "  yes" if holds else "  NO"
            print(f"{key:28}{value:>10.3f}   {must:10}{verdict}")
    total = sum(results["seconds"].values())
    print(f"{'total':28}{total / 60:>6.1f} min   peak memory {results['peak_memory_gb']:.1f} GB")


def write_page(out: Path, results: dict[str, Any], truth: Mapping[str, Scene]) -> None:
    """Write ``report.html``: pictures and headlines first, then every stage, then every score.

    Args:
        out: folder of the tour.
        results: content of ``results.json``.
        truth: scene of each web pair, by key.
    """
    capfilt_out, names = out / "capfilt", ("stage1", *FAMILIES)
    web, runs = capfilt_out / "web", [out / "train" / name for name in names]
    evaluations = {name: read_evaluation(out / "eval" / name) for name in names}
    must = {key: (says, holds) for key, _, says, holds in targets(results)}
    rows = [
        Result(readable(key), value, must.get(key, ("",))[0], passed=must.get(key, ("", None))[1])
        for section in SECTIONS
        for key, value in _flat(section, results[section])
    ]
    seconds = {
        _STAGES.get(name, name): f"{value:.0f} s" for name, value in results["seconds"].items()
    }
    facts = {"peak memory": f"{results['peak_memory_gb']} GB", "seed": results["seed"]}
    note, samples = captioned([evaluations["t5"]])
    page = [
        *sections_of([web, capfilt_out / "coco"], runs, list(evaluations.values()), {web: truth}),
        Results("All scores", rows, "Scores between 0 and 1; CIDEr 1.0 is 100 in papers."),
        Facts("How long it took", seconds | facts),
        hardware(),
    ]
    first = Overview(samples, headlines(results), _cost(results, runs), note)
    write_report(out / "report.html", Report("Isthmus on TinyWorld", page, overview=first))


def headlines(results: dict[str, Any]) -> list[Result]:
    """The scores that have a target, each with its control, and the minutes of the tour."""
    rows = []
    for key, value, says, holds in targets(results):
        *path, metric = key.split(".")
        scores = results
        for word in path:
            scores = scores[word]
        name = f"zero-shot {readable(key)}" if path[0] == "vqa" else readable(key)
        rows.append(Result(name, value, says, control(scores, metric), holds))
    total = sum(results["seconds"].values())
    memory = f"peak memory: {results['peak_memory_gb']:.1f} GB"
    return [*rows, Result("minutes for all stages", f"{total / 60:.1f}", control=memory)]


def _cost(results: dict[str, Any], runs: Sequence[Path]) -> dict[str, str]:
    """How long the tour took, on what processor, and in which number formats."""
    stages = ", ".join(
        f"{_STAGES.get(name, name)} {duration(value)}" for name, value in results["seconds"].items()
    )
    return {"it took": stages} | arithmetic_facts(runs, here=True)


def _flat(prefix: str, values: dict[str, Any]) -> list[tuple[str, float]]:
    """Scores in a nested dictionary by dotted name, without counts and breakdowns."""
    rows: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, dict) and key != "domains" and not key.startswith("by_"):
            rows += _flat(f"{prefix}.{key}", value)
        elif isinstance(value, float) and not key.startswith("exact_match"):
            rows.append((f"{prefix}.{key}", value))
    return rows
