"""Means of scores: overall, and for each group of a grouping such as the question type."""

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Mean:
    """Sum and count of a score, which ranks or shards can add up before the division."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean; 0.0 where nothing was added."""
        return self.total / self.count if self.count else 0.0


@dataclass
class GroupedMean:
    """A mean over everything, and one for each group of each grouping.

    Attributes:
        groups: means by grouping (``question_type``) and by name of the group.
    """

    overall: Mean = field(default_factory=Mean)
    groups: dict[str, dict[str, Mean]] = field(default_factory=dict)

    def add(self, value: float, **group: str) -> None:
        """Add a value to the overall mean, and to the named group of each grouping."""
        self.overall.add(value)
        for grouping, name in group.items():
            means = self.groups.setdefault(grouping, defaultdict(Mean))
            means[name].add(value)

    def as_dict(self) -> dict[str, object]:
        """``{"accuracy": …, "count": …, "by_question_type": {name: …}, …}``."""
        groups = {
            f"by_{grouping}": {name: means[name].value for name in sorted(means)}
            for grouping, means in self.groups.items()
        }
        return {"accuracy": self.overall.value, "count": self.overall.count, **groups}
