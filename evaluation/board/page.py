"""The leaderboard page: the newest checkpoint of each run, curves over steps, links to answers.

A suite's digest is in the name of its folder, so that all numbers of a page were made with the same
prompts, decoding and metrics.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.benchmarks.catalogue import BENCHMARKS
from evaluation.board.history import Entry
from evaluation.report.machine import hardware
from evaluation.report.page import Curves, Grid, Link, Report, Section, write_report
from evaluation.report.plots import Chart, Series
from evaluation.tables.beside import printed
from evaluation.tables.published import TABLES

# The number that stands for a task: the first of these that it has.
LEADING = ("auroc", "mrr", "accuracy", "cider", "tr_r1")
_METRICS = {"auroc": "AUROC", "mrr": "MRR", "cider": "CIDEr", "tr_r1": "text retrieval R@1"}
_NOTE = (
    "Fractions, with 95 % intervals. Published numbers are the best rows of the papers' tables, on "
    "the authors' whole benchmarks."
)


def board(suite: str, entries: Sequence[Entry]) -> Report:
    """The page's content.

    Args:
        suite: name of the suite, with its digest.
        entries: the history of all runs.
    """
    columns = leading(entries)
    sections: list[Section] = [_newest(columns)]
    if columns:
        sections.append(Curves("Over the steps of training", _charts(columns)))
    sections.append(_all_steps(columns))
    return Report(f"Leaderboard: {suite.rpartition('-')[0]}", [*sections, hardware()])


def write_board(path: Path, suite: str, entries: Sequence[Entry]) -> None:
    """Write the page."""
    write_report(path, board(suite, entries))


def leading(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """The entries of each task's leading metric, by task and metric, in the order of steps."""
    of_task: dict[str, set[str]] = {}
    for entry in entries:
        of_task.setdefault(entry.task, set()).add(entry.metric)
    first = {
        task: next((name for name in LEADING if name in metrics), "")
        for task, metrics in of_task.items()
    }
    found: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if entry.metric == first[entry.task]:
            found.setdefault((entry.task, entry.metric), []).append(entry)
    return found


def published(task: str, metric: str) -> str:
    """The best published number of a score, in the paper's units, with the model; "" for none."""
    best: tuple[float, str] | None = None
    for table in TABLES.values():
        for name, measure in table.measures.items():
            if measure is None or (measure.task, measure.key) != (task, metric):
                continue
            for row in table.rows:
                value = row.values.get(name)
                if value is not None and (best is None or value > best[0]):
                    best = value, row.model
    return "" if best is None else f"{printed(best[0])} ({best[1]})"


def _newest(columns: Mapping[tuple[str, str], Sequence[Entry]]) -> Grid:
    """The newest checkpoint of each run: a row a task, a column a run."""
    newest: dict[str, int] = {}
    for found in columns.values():
        for entry in found:
            newest[entry.run] = max(entry.step, newest.get(entry.run, 0))
    rows: list[list[object]] = []
    for (task, metric), found in columns.items():
        cells: list[object] = [_title(task, metric)]
        for run, step in newest.items():
            here = [e for e in found if (e.run, e.step) == (run, step)]
            cells.append(_cell(here[-1]) if here else "not yet")
        rows.append([*cells, published(task, metric)])
    names = [f"{Path(run).name}, step {step:,}" for run, step in newest.items()]
    return Grid("The newest checkpoint of each run", ["score", *names, "published"], rows, _NOTE)


def _charts(columns: Mapping[tuple[str, str], Sequence[Entry]]) -> list[Chart]:
    """A chart a task, a line a run, with the band of its intervals."""
    charts = []
    for (task, metric), found in columns.items():
        of_run: dict[str, list[Entry]] = {}
        for entry in found:
            of_run.setdefault(entry.run, []).append(entry)
        lines = [
            Series(
                Path(run).name,
                [e.step for e in steps],
                [e.value for e in steps],
                [(e.low, e.high) for e in steps],
            )
            for run, steps in of_run.items()
        ]
        charts.append(Chart(_title(task, metric), lines))
    return charts


def _all_steps(columns: Mapping[tuple[str, str], Sequence[Entry]]) -> Grid:
    """Every evaluated checkpoint, newest first: a row each, with a link to its predictions."""
    steps = sorted(
        {(e.step, e.run, e.name) for found in columns.values() for e in found}, reverse=True
    )
    rows: list[list[object]] = []
    for step, run, name in steps:
        scores: list[object] = []
        for found in columns.values():
            here = [e for e in found if (e.run, e.step, e.name) == (run, step, name)]
            scores.append(f"{here[-1].value:.3f}" if here else "")
        link = Link(f"{step:,}", f"{name}/results.json")
        rows.append([link, Path(run).name, *scores])
    head = ["step", "run", *(_title(task, metric) for task, metric in columns)]
    return Grid(
        "All evaluated checkpoints", head, rows,
        "The step leads to the scores; the predictions are in the same folder.",
    )  # fmt: skip


def _title(task: str, metric: str) -> str:
    """The name of a benchmark as papers print it, and of its score."""
    name = BENCHMARKS[task].title if task in BENCHMARKS else f"own data, {task}"
    return f"{name}: {_METRICS.get(metric, metric)}"


def _cell(entry: Entry) -> str:
    if entry.low != entry.low:  # NaN: there is no interval
        return f"{entry.value:.3f}"
    return f"{entry.value:.3f} ({entry.low:.3f} to {entry.high:.3f})"
