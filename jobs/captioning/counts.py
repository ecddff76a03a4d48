"""The contents of a CapFilt output, counted from its commit records."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.storage.base import Storage
from cluster.storage.open import open_storage
from pipeline.shards.manifest import Commit, committed


def existing(output: str) -> tuple[Storage, list[Commit]]:
    """The storage and the commit records of an output that has some.

    Raises:
        ValueError: nothing is committed there.
    """
    commits = committed(output)
    if not commits:
        raise ValueError(f"--output {output}: no commit record in shards/; give a CapFilt output")
    return open_storage(output), commits


@dataclass(frozen=True)
class Counts:
    """The inputs of an output by what became of them; each counts once, also after a retry.

    Attributes:
        images: number of inputs.
        kept: inputs that are samples in the tars.
        filtered: inputs that a filter dropped.
        failed: inputs that could not be used.
        reasons: number of dropped inputs by reason.
        web_won: kept inputs whose web caption ranked first.
        unlooked: inputs that lack a column that a filter reads, by column.
    """

    images: int
    kept: int
    filtered: int
    failed: int
    reasons: dict[str, int]
    web_won: int
    unlooked: dict[str, int]

    def notes(self) -> list[str]:
        """A line for each set of filters that could not look at some inputs."""
        columns: dict[int, list[str]] = {}
        for name, number in self.unlooked.items():
            columns.setdefault(number, []).append(name)
        return [
            f"note: {number:,} of {self.images:,} images have no {' or '.join(names)} column and "
            "passed the filters that read it"
            for number, names in columns.items()
        ]


def count(commits: Sequence[Commit]) -> Counts:
    """The sum of the records. An input that was retried counts with its last outcome only."""
    reasons, retried, unlooked = Counter[str](), Counter[str](), Counter[str]()
    for commit in commits:
        unlooked.update({} if commit.retry_of else commit.unlooked)
        reasons.update(commit.reasons)
        reasons.subtract(commit.retried)
        retried.update(commit.retried_status)
    return Counts(
        images=sum(commit.n for commit in commits if not commit.retry_of),
        kept=sum(commit.ok for commit in commits),
        filtered=sum(commit.filtered for commit in commits) - retried["filtered"],
        failed=sum(commit.failed for commit in commits) - retried["failed"],
        reasons={reason: number for reason, number in sorted(reasons.items()) if number},
        web_won=sum(commit.web_won for commit in commits),
        unlooked=dict(sorted(unlooked.items())),
    )
