"""The interface of a task: passes over its items, answers of a model, scores of the answers.

A task is answered in passes. Most have one pass with the images and further ones for the controls;
retrieval embeds all texts and images first, and then matches the candidates that follow from the
embeddings. ``evaluation.chunks`` cuts the items of a pass into chunks, which do not depend on the
number of workers, and keeps their answers. ``score`` needs the answers alone and no model.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from evaluation.outputs import Outputs

Row = dict[str, Any]
"""The answer to one item, as JSON: its id, and ``answer``, ``caption`` or ``scores``."""
Arrays = dict[str, np.ndarray]
"""The answers to the items of a chunk as arrays, whose first dimension counts items or pairs."""
Answers = list[Row] | Arrays
Answer = Callable[[str, Sequence[Any]], Answers]
"""Name of a pass and some of its items -> the model's answers to them."""
MOST_FAILED = 0.001
"""Share of items that may fail without failing the task."""


@dataclass(frozen=True)
class Pass:
    """One pass over the items of a task.

    Attributes:
        name: name of the pass; empty for the answers that the task is about.
        items: items in the order in which their results stand.
        groups: for each item the group that stays in one chunk (its image); None: no groups.
        chunk: number of items of a chunk; None: the evaluation's.
    """

    name: str
    items: Sequence[Any]
    groups: Sequence[Hashable] | None = None
    chunk: int | None = None


class Task(Protocol):
    """One task of an evaluation."""

    @property
    def name(self) -> str:
        """Name of the task, under which its scores stand and as its files begin."""

    @property
    def split(self) -> str:
        """Split of its data."""

    def passes(self, done: Mapping[str, list[Any]]) -> list[Pass]:
        """The passes that can be answered.

        Args:
            done: answers of the passes that are complete, by name: a row an item (None: the item
                failed), or the arrays of each chunk.
        """

    def score(self, done: Mapping[str, list[Any]], out: Outputs) -> dict[str, Any]:
        """The scores, with ``notes``; writes predictions and submissions to ``out``.

        Args:
            done: answers of all passes.
        """


def without_failed(rows: Sequence[Row | None], what: str) -> tuple[list[Row], list[str]]:
    """The rows of the items that were answered, and a note where some failed.

    Args:
        what: noun for the items, in the plural.

    Raises:
        ValueError: more than ``MOST_FAILED`` of the items failed.
    """
    kept = [row for row in rows if row is not None and "failed" not in row]
    lost = [row for row in rows if row is not None and "failed" in row]
    if not lost:
        return kept, []
    first = lost[0]
    named = next(str(value) for key, value in first.items() if key.endswith("_id"))
    told = f"{len(lost)} of {len(rows)} {what} failed, the first of them {named}: {first['failed']}"
    if len(lost) > MOST_FAILED * len(rows):
        raise ValueError(
            f"{told}; more than {MOST_FAILED:.1%} of them must not fail: repair the cause, remove "
            "their chunks' files from the answers folder, and start again"
        )
    return kept, [f"{told}; they were not scored"]
