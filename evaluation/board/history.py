"""The history of scheduled evaluations: a Parquet file a checkpoint, which is never written again.

    FOLDER/history/step_00000200-1a2b3c4d.parquet     a row a number of results.json

Read all of them as one data set: ``pyarrow.parquet.read_table("FOLDER/history")``.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage.base import Conflict, Storage
from evaluation.results import numbers

FOLDER = "history"
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("run", "name")),
        ("step", pa.int64()),
        *((name, pa.string()) for name in ("suite", "task", "metric")),
        *((name, pa.float64()) for name in ("value", "low", "high")),
        ("count", pa.int64()),
        *((name, pa.string()) for name in ("preset", "checkpoint", "recipe", "finished")),
    ]
)


@dataclass(frozen=True)
class Entry:
    """One number of one evaluation.

    Attributes:
        run: folder or URL of the training run.
        name: name of the evaluated checkpoint's folder in the history.
        step: number of updates that the checkpoint had made.
        suite: name of the suite, with the digest of its content.
        task, metric: the number's names in ``results.json``.
        value: the number, a fraction.
        low, high: its 95 % interval; NaN: it has none.
        count: number of items behind it.
        preset: what the answers were made with beside checkpoint and data, as JSON.
        checkpoint: digest of the checkpoint.
        recipe: recipe of the run.
        finished: time at which the evaluation ended, in ISO form, UTC.
    """

    run: str
    name: str
    step: int
    suite: str
    task: str
    metric: str
    value: float
    low: float
    high: float
    count: int
    preset: str
    checkpoint: str
    recipe: str
    finished: str


def entries_of(
    results: Mapping[str, Any], *, run: str, name: str, suite: str, finished: str
) -> Iterator[Entry]:
    """The numbers of a ``results.json``."""
    for task, scores in results.items():
        if not isinstance(scores, dict) or "made_with" not in scores:
            continue
        intervals = scores.get("intervals", {})
        made = scores["made_with"]
        for metric, value in numbers(scores):
            low, high = intervals.get(metric, (float("nan"), float("nan")))
            yield Entry(
                *(run, name, int(results["step"]), suite, task, metric, float(value)),
                *(float(low), float(high), int(scores.get("count", 0))),
                str(made.get("preset")),
                *(made["checkpoint"], results["recipe"], finished),
            )


def append(storage: Storage, name: str, entries: Iterator[Entry]) -> None:
    """Write the entries of one evaluation, unless they are there."""
    rows = [asdict(entry) for entry in entries]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), sink)
    try:
        storage.publish(f"{FOLDER}/{name}.parquet", sink.getvalue())
    except Conflict:  # another process has written the same evaluation, at another second
        return


def has(storage: Storage, name: str) -> bool:
    """Whether an evaluation is in the history."""
    return storage.exists(f"{FOLDER}/{name}.parquet")


def read(storage: Storage) -> list[Entry]:
    """All entries, by run, step and task."""
    found: list[Entry] = []
    for file in storage.entries(FOLDER):
        if Path(file.name).suffix == ".parquet":
            table = pq.read_table(io.BytesIO(storage.read(file.name)))
            found += [Entry(**row) for row in table.to_pylist()]
    return sorted(found, key=lambda entry: (entry.run, entry.step, entry.task, entry.metric))
