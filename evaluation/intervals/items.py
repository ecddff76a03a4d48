"""``TASK_SPLIT_items.json``: what was observed of every item, as the scorer left it.

Columns and not rows, so that a name stands once; groups as numbers. Numbers are written so that
reading gives the same bits, and a missing one is ``null``.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.intervals.observed import Observation, Observed

VERSION = 1


def items_name(task: str, split: str) -> str:
    """The name of the file of a task's items."""
    return f"{task}_{split}_items.json"


def as_json(observed: Sequence[Observed]) -> dict[str, Any]:
    """The content of the file: of retrieval two parts, images and texts; of other tasks one."""
    return {"version": VERSION, "parts": [_part(one) for one in observed]}


def from_json(content: Any, name: str = "items file") -> list[Observed]:
    """What ``as_json`` was given.

    Raises:
        ValueError: the content is not of this format; names the file.
    """
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise ValueError(
            f"{name} is of version {version!r} and {VERSION} is read; score the run again"
        )
    try:
        return [_observed(part) for part in content["parts"]]
    except (KeyError, TypeError, IndexError, AttributeError) as broken:
        raise ValueError(f"{name} is damaged ({broken!r}); score the run again") from broken


def dumps(observed: Sequence[Observed]) -> str:
    """The text of the file."""
    return json.dumps(as_json(observed), ensure_ascii=False, separators=(",", ":")) + "\n"


def _part(observed: Observed) -> dict[str, Any]:
    groups = {}
    for grouping, names in observed.groups.items():
        known = sorted(set(names))
        number = {name: place for place, name in enumerate(known)}
        groups[grouping] = {"names": known, "of": [number[name] for name in names]}
    return {
        "items": list(observed.items),
        "images": list(observed.images),
        "groups": groups,
        "grouped": list(observed.grouped),
        "scores": {name: _columns(one) for name, one in observed.scores.items()},
    }


def _columns(one: Observation) -> dict[str, Any]:
    columns = [[None if np.isnan(v) else _short(v) for v in column] for column in one.rows.T]
    return {"statistic": one.statistic, "columns": columns}


def _short(value: float) -> float | int:
    return int(value) if value == int(value) and abs(value) < 2**53 else float(value)


def _observed(part: dict[str, Any]) -> Observed:
    scores = {}
    for name, one in part["scores"].items():
        columns = [[np.nan if v is None else v for v in column] for column in one["columns"]]
        rows = np.array(columns, dtype=np.float64).T.copy()
        scores[name] = Observation(rows, one["statistic"])
    groups = {
        grouping: tuple(coded["names"][place] for place in coded["of"])
        for grouping, coded in part["groups"].items()
    }
    ids = tuple(part["items"]), tuple(part["images"])
    return Observed(*ids, scores, groups, tuple(part["grouped"]))
