"""Dropped inputs of a CapFilt output, tried again on request (``retry --reason R``).

Committed shards are never edited: ``00000123-retry01`` holds the new outcome of inputs that
``00000123`` had dropped.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from cluster.storage.base import Storage
from jobs.captioning.counts import count, existing
from jobs.captioning.work import RETRY, Work
from pipeline.shards.manifest import Commit
from pipeline.shards.parquet import SampleRow, read_parquet

FINAL = frozenset({"duplicate_key", "duplicate_image"})
"""Reasons that lie in the input itself: trying again cannot help."""


def take_reasons(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of ``--reason`` (one or several, comma or space between), and all else.

    Raises:
        ValueError: none given.
    """
    reasons: list[str] = []
    rest: list[str] = []
    taking = False
    for argument in arguments:
        taking = argument == "--reason" or (taking and not argument.startswith("--"))
        if not taking:
            rest.append(argument)
        elif argument != "--reason":
            reasons += [reason for reason in argument.split(",") if reason]
    if not reasons:
        raise ValueError("--reason: none given; add --reason and a word from the stats")
    return reasons, rest


def retry_work(work: Sequence[Work], output: str, reasons: Sequence[str]) -> list[Work]:
    """A new shard for each shard of the plan that dropped inputs for one of the reasons.

    Raises:
        ValueError: nothing is committed in the output yet, or nothing was dropped for a reason.
    """
    storage, commits = existing(output)
    rows = _dropped_rows(storage, commits, frozenset(reasons))
    times = Counter(commit.retry_of for commit in commits)
    return [
        replace(item, name=f"{item.name}{RETRY}{times[item.name] + 1:02d}", again=tuple(again))
        for item in work
        if (again := rows.get(item.name))
    ]


def _dropped_rows(
    storage: Storage, commits: Sequence[Commit], reasons: frozenset[str]
) -> dict[str, list[SampleRow]]:
    """The rows of inputs whose last outcome is one of the reasons, by their first shard's name.

    Raises:
        ValueError: a reason that nothing was dropped for, or a final one; names those there are.
    """
    known = {r: n for r, n in count(commits).reasons.items() if r not in FINAL}
    unknown = sorted(reasons - known.keys())
    if unknown:
        raise ValueError(
            f"--reason {', '.join(unknown)}: nothing was dropped for it; "
            f"choose from {', '.join(known) or 'nothing: all inputs are kept'}"
        )
    last: dict[str, tuple[str, SampleRow]] = {}
    for commit in sorted(commits, key=lambda commit: (commit.retry_of != "", commit.name)):
        if commit.retry_of or any(reason in reasons for reason in commit.reasons):
            for row in read_parquet(storage.read(commit.parquet)):
                if row.reason not in FINAL:
                    last[row.uid] = (commit.retry_of or commit.name, row)
    found: dict[str, list[SampleRow]] = {}
    for shard, row in last.values():
        if row.status != "ok" and row.reason in reasons:
            found.setdefault(shard, []).append(row)
    return found
