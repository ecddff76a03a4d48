"""The report's section on two runs compared in pairs, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Change:
    """One score of two runs.

    Attributes:
        first, second, difference, interval, p: cells as they are printed.
        ends: ends of the interval of the difference; None: there is none.
        value: the difference.
        verdict: the comparison in a word, such as "higher".
    """

    name: str
    first: str
    second: str
    difference: str
    interval: str
    p: str
    value: float
    ends: tuple[float, float] | None
    verdict: str


@dataclass(frozen=True)
class Changes:
    """Table of differences between two runs.

    Attributes:
        first, second: names of the two runs.
    """

    kind: ClassVar[str] = "changes"
    title: str
    first: str
    second: str
    rows: Sequence[Change]
    note: str = ""

    @property
    def reach(self) -> float:
        """Largest distance of an end from 0, at least 0.01: the scale of all bars."""
        ends = [abs(end) for row in self.rows for end in row.ends or ()]
        return max([0.01, *ends])
