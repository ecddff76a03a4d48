"""Our results beside a published row, in the paper's units."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.tables.published import TABLES
from evaluation.tables.rows import Measure, Row

_COMMON = {"vqa": "vqav2", "gqa": "gqa", "retrieval": "coco_retrieval"}
_HEAD = ("metric", "paper", "ours", "difference", "95 % interval of ours")


@dataclass(frozen=True)
class Comparison:
    """One metric: the paper's value, and ours in the same unit (None: not measured).

    Attributes:
        interval: ends of the 95 % interval of ours; None: there is none.
        recalled: whether the paper's value was written down from memory.
    """

    metric: str
    paper: float
    ours: float | None
    interval: tuple[float, float] | None = None
    recalled: bool = False

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, in points."""
        return None if self.ours is None else self.ours - self.paper

    def cells(self) -> tuple[str, str, str, str, str]:
        """The printed cells: metric, paper, ours, difference, interval of ours."""
        paper = printed(self.paper) + (" (recalled)" if self.recalled else "")
        if self.ours is None:
            return self.metric, paper, "–", "–", ""
        ends = "" if self.interval is None else " to ".join(f"{end:.1f}" for end in self.interval)
        return self.metric, paper, f"{self.ours:.1f}", f"{self.difference:+.1f}", ends


def printed(value: float) -> str:
    """A published value with the decimals that the paper prints, at least one.

    >>> printed(81.55), printed(65.0)
    ('81.55', '65.0')
    """
    return f"{value:.1f}" if round(value, 1) == value else f"{value:.2f}"


def measured(
    table: str | int, results: Mapping[str, Any]
) -> dict[str, tuple[float, tuple[float, float] | None]]:
    """Our scores and their intervals, as fractions, by the names of a table's metrics.

    Args:
        results: content of ``results.json``.
    """
    found = {}
    tasks = _by_benchmark(results)
    for metric, measure in TABLES[str(table)].measures.items():
        scores, common = tasks.get(measure.task if measure else "", ({}, False))
        if measure is None or (common and not measure.common):
            continue
        value = _at(scores, measure)
        if value is not None:
            ends = scores.get("intervals", {}).get(measure.key)
            found[metric] = (value, (ends[0], ends[1]) if ends else None)
    return found


def _by_benchmark(results: Mapping[str, Any]) -> dict[str, tuple[Mapping[str, Any], bool]]:
    """The scores of tasks by benchmark, and whether they are of a common format.

    A benchmark's own task goes before one of a common format.
    """
    tasks = {name: scores for name, scores in results.items() if isinstance(scores, Mapping)}
    found = {_COMMON[name]: (scores, True) for name, scores in tasks.items() if name in _COMMON}
    if "caption" in tasks:
        found["nocaps" if "domains" in tasks["caption"] else "coco"] = tasks["caption"], True
    return found | {n: (scores, False) for n, scores in tasks.items() if n not in _COMMON}


def _at(scores: Mapping[str, Any], measure: Measure) -> float | None:
    """The score of a measure; None: there is none, or it is of another split."""
    if measure.split and scores.get("split", measure.split) != measure.split:
        return None
    found: Any = scores
    for part in measure.key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None


def compare(
    row: Row,
    ours: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float] | None] | None = None,
) -> list[Comparison]:
    """Our results beside a row of a paper.

    Args:
        ours: fractions by the metrics' names in ``METRICS``.
        intervals: ends of their intervals by the same names, fractions.

    Raises:
        ValueError: ``ours`` names a metric that the row does not have.
    """
    unknown = sorted(set(ours) - set(row.values))
    if unknown:
        raise ValueError(
            f"table {row.table} has no metric {unknown[0]!r}; metrics: {', '.join(row.values)}"
        )
    lines = []
    for metric, value in row.values.items():
        ends = (intervals or {}).get(metric)
        percent = None if ends is None else (100 * ends[0], 100 * ends[1])
        own = 100 * ours[metric] if metric in ours else None
        lines.append(Comparison(metric, value, own, percent, metric in row.recalled))
    return lines


def beside(row: Row, results: Mapping[str, Any]) -> list[Comparison]:
    """The scores of ``results.json`` beside a row; metrics that the row leaves out are left out."""
    found = {m: both for m, both in measured(row.table, results).items() if m in row.values}
    return compare(
        row,
        {metric: value for metric, (value, _) in found.items()},
        {metric: ends for metric, (_, ends) in found.items()},
    )


def render_text(row: Row, lines: list[Comparison]) -> str:
    """The comparison as aligned text."""
    cells = [_HEAD, *(line.cells() for line in lines)]
    columns = range(len(_HEAD) if any(line.interval for line in lines) else len(_HEAD) - 1)
    wide = [max(len(row[column]) for row in cells) for column in columns]
    body = []
    for line in cells:
        name, *numbers = (line[column] for column in columns)
        body.append("  ".join([name.ljust(wide[0]), *map(str.rjust, numbers, wide[1:])]))
    return "\n".join([f"{TABLES[row.table].title}: {row.model}", *map(str.rstrip, body)])
