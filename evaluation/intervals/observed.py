"""The numbers behind the scores of a task: what was observed of every item, and of which image.

A scorer fills an ``Observed``: accuracy is the mean of a number for each question, BLEU follows
from sums of counts for each caption. Intervals and comparisons are computed from it alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evaluation.benchmarks.records import ImageId
from evaluation.intervals.statistics import STATISTICS


@dataclass(frozen=True, eq=False)
class Observation:
    """What one score is computed from.

    Attributes:
        rows: fp64 numbers, a row an item, with the columns of the statistic. A row that begins with
            NaN does not count for this score.
        statistic: name of the function of all rows that is the score (``STATISTICS``).
    """

    rows: np.ndarray
    statistic: str = "fraction"

    def __post_init__(self) -> None:
        columns = STATISTICS[self.statistic].columns
        if self.rows.ndim != 2 or self.rows.shape[1] != columns:
            raise ValueError(
                f"{self.statistic} needs {columns} numbers for each item, got an array of shape "
                f"{self.rows.shape}"
            )
        if np.isnan(self.rows[self.counted]).any() or np.isinf(self.rows).any():
            raise ValueError(f"{self.statistic} got a number that is not finite")
        if (
            self.statistic == "fraction"
            and (np.abs(self.rows[self.counted] - 0.5) > 0.5 + 1e-9).any()
        ):
            raise ValueError("a fraction must be between 0 and 1; take the statistic mean")

    @property
    def counted(self) -> np.ndarray:
        """Whether each item counts."""
        return ~np.isnan(self.rows[:, 0])


def fractions(values: Sequence[float | None]) -> Observation:
    """The observation of a mean of numbers between 0 and 1; an item with None does not count."""
    return Observation(_column(values))


def amounts(values: Sequence[float | None]) -> Observation:
    """The observation of a mean of any numbers; an item with None does not count."""
    return Observation(_column(values), "mean")


def _column(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64).reshape(-1, 1)


@dataclass(frozen=True, eq=False)
class Observed:
    """The items of a task, and what was observed of each.

    Attributes:
        items: id of each item, each once: of a question, an image or a caption.
        images: id of the image of each item. Items of one image depend on each other, and are
            resampled together.
        scores: observation by the dotted name of the score in the task's results
            (``domains.in-domain.cider``); BLEU's is ``bleu``, of which ``bleu1`` to ``bleu4`` are.
        groups: name of the group of each item by grouping (``question_type``); empty: no group.
        grouped: names of the scores that the results also give for each group:
            ``by_question_type`` holds those of accuracy, ``by_question_type_blind`` those of blind.
    """

    items: tuple[ImageId, ...]
    images: tuple[ImageId, ...]
    scores: Mapping[str, Observation]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    grouped: tuple[str, ...] = ("accuracy", "blind", "text_only")

    def __post_init__(self) -> None:
        if len(set(self.items)) < len(self.items):
            raise ValueError("an item occurs twice among the items of a task; each must be once")
        sizes = {"images": len(self.images)}
        sizes |= {name: len(one.rows) for name, one in self.scores.items()}
        sizes |= {name: len(names) for name, names in self.groups.items()}
        for name, size in sizes.items():
            if size != len(self.items):
                raise ValueError(f"{name} has {size} rows for {len(self.items)} items")

    def names(self) -> list[str]:
        """The names of the scores without groups."""
        suffixes = {name: STATISTICS[one.statistic].suffixes for name, one in self.scores.items()}
        return [name + suffix for name in self.scores for suffix in suffixes[name]]


def group_key(grouping: str, score: str) -> str:
    """The name under which the results hold a score of the groups of a grouping."""
    return f"by_{grouping}" if score == "accuracy" else f"by_{grouping}_{score}"
