"""The leaderboard page: the newest checkpoint of each run, curves over steps, links to answers.

Numbers stand in one column only where the task, the metric and everything that the answers were
made with are equal.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.board.history import Entry
from evaluation.report.machine import hardware
from evaluation.report.page import Curves, Grid, Report, Section, write_report
from evaluation.report.plots import Chart, Series

# The number that stands for a task: the first of these that it has.
LEADING = ("auroc", "mrr", "accuracy", "cider", "tr_r1")
_FEW = 12  # charts of a page


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


def board(suite: str, entries: Sequence[Entry], title: str = "") -> Report:
    """The page's content.

    Args:
        suite: name of the suite.
        entries: the history of all runs.
    """
    columns = leading(entries)
    sections: list[Section] = [_newest(columns), _all_steps(columns)]
    charts = [
        Chart(
            f"{task}: {metric}",
            [
                Series(Path(run).name, [e.step for e in of_run], [e.value for e in of_run])
                for run, of_run in _by_run(found).items()
            ],
            y_label=metric,
        )
        for (task, metric), found in list(columns.items())[:_FEW]
    ]
    if charts:
        sections.insert(1, Curves("Over the steps of training", charts))
    return Report(title or f"Leaderboard: suite {suite}", [*sections, hardware()])


def write_board(path: Path, suite: str, entries: Sequence[Entry]) -> None:
    """Write the page."""
    write_report(path, board(suite, entries))


def _newest(columns: Mapping[tuple[str, str], Sequence[Entry]]) -> Grid:
    """The newest checkpoint of each run: a row a run, a column a task."""
    runs = sorted({entry.run for found in columns.values() for entry in found})
    rows: list[list[object]] = []
    for run in runs:
        cells: list[object] = [Path(run).name]
        newest = max(e.step for found in columns.values() for e in found if e.run == run)
        cells.append(newest)
        for found in columns.values():
            here = [e for e in found if e.run == run and e.step == newest]
            cells.append(_cell(here[-1]) if here else "not yet")
        rows.append(cells)
    head = ["run", "step", *(f"{task} {metric}" for task, metric in columns)]
    return Grid("The newest checkpoint of each run", head, rows, "Fractions; 95 % intervals.")


def _all_steps(columns: Mapping[tuple[str, str], Sequence[Entry]]) -> Grid:
    """Every evaluated checkpoint: a row each."""
    steps = sorted(
        {(e.run, e.step, e.name) for found in columns.values() for e in found}, reverse=True
    )
    rows: list[list[object]] = []
    for run, step, name in steps:
        cells: list[object] = [Path(run).name, step]
        for found in columns.values():
            here = [e for e in found if (e.run, e.step, e.name) == (run, step, name)]
            cells.append(_cell(here[-1]) if here else "not yet")
        rows.append([*cells, name])
    head = ["run", "step", *(f"{task} {metric}" for task, metric in columns), "answers"]
    return Grid("All evaluated checkpoints", head, rows, "answers: folder of the predictions.")


def _cell(entry: Entry) -> str:
    if entry.low != entry.low:  # NaN: there is no interval
        return f"{entry.value:.3f}"
    return f"{entry.value:.3f} [{entry.low:.3f}, {entry.high:.3f}]"


def _by_run(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.run, []).append(entry)
    return found
