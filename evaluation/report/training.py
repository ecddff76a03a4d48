"""The report's sections on training runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import checkpoint
from cluster.logfiles import read_log
from evaluation.report.page import Curves, Facts
from evaluation.report.plots import Chart, log_series

_LOSSES = ("loss", "itc", "itm", "itg")


def curves(runs: Sequence[Path]) -> Curves:
    """The losses of every run and its images a second, a chart each."""
    logs = {path.name: read_log(path / "log.jsonl") for path in runs}
    charts = [
        Chart(f"{name}: loss", log_series(records, _LOSSES), y_label="loss")
        for name, records in logs.items()
    ]
    charts += [
        Chart(f"{name}: images a second", log_series(records, ["images_per_s"]), y_label="images/s")
        for name, records in logs.items()
    ]
    return Curves("Training", charts)


def arithmetic(runs: Sequence[Path]) -> Facts:
    """Number formats of every run, and the processor that its last checkpoint was made on."""
    rows = {}
    for name, state in saved_states(runs).items():
        formats = state.get("precision")
        if formats:
            said = ", ".join(f"{part} {dtype}" for part, dtype in formats.items())
            rows[name] = f"{said}; {state['processor']}"
    return Facts("What training computed in", rows)


def saved_states(runs: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The state beside the tensors of each run's last checkpoint, by the run's name."""
    states = {}
    for path in runs:
        try:
            states[path.name] = checkpoint.find(path).state
        except ValueError:  # a run that has not saved yet
            continue
    return states
