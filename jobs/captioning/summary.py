"""The summary of a CapFilt run, printed at its end for people and for programs."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.captioning.counts import Counts, count
from pipeline.shards.manifest import Commit

NOTHING_KEPT = 3
"""Exit code of a run whose output holds no sample (1 is a crash, 2 a user's mistake)."""


@dataclass
class Tally:
    """The results of a run's shards so far.

    Attributes:
        done: shards that this run committed.
        others: shards that somebody else had committed when this run came to them, or by the time
            it had made them.
        images: inputs of the shards that this run made.
        dropped: inputs of these that were dropped, by reason.
        short: images at once where the device had no memory for a whole batch, by model.
        seconds: wall time from the first shard's start to the last one's end; 0 until then.
    """

    done: int = 0
    others: int = 0
    images: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    short: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, result: dict[str, Any]) -> None:
        """Count the result of a shard's last stage."""
        self.done += result["here"]
        self.others += not result["here"]
        self.images += result["n"]
        self.dropped.update(result["reasons"])
        for model, size in result["short"].items():
            self.short[model] = min(size, self.short.get(model, size))


@dataclass(frozen=True)
class Summary(Counts):
    """The contents of an output after a run, and how the run went.

    Attributes:
        done: shards that this run committed.
        others: shards that another run on the same output committed meanwhile (or a worker of
            this one that was lost after it had).
        skipped: shards that were committed before.
        seconds: wall time of the whole run.
        images_per_s: speed of this run from its first shard's start; 0 if it made none.
        output: the output's folder or URL.
        short: images at once where the device had no memory for a whole batch, by model.
    """

    done: int
    others: int
    skipped: int
    seconds: float
    images_per_s: float
    output: str
    short: dict[str, int]


def summarise(commits: Sequence[Commit], tally: Tally, seconds: float, output: str) -> Summary:
    """The counts of an output and of the run that ends here."""
    speed = tally.images / tally.seconds if tally.seconds else 0.0
    return Summary(
        **asdict(count(commits)),
        done=tally.done,
        others=tally.others,
        skipped=len(commits) - tally.done - tally.others,
        seconds=round(seconds, 2),
        images_per_s=round(speed, 2),
        output=output,
        short=dict(tally.short),
    )


def show(summary: Summary) -> int:
    """Print the table for people, and the last line for programs.

    Returns:
        The exit code: 0, or ``NOTHING_KEPT``, said on stderr, for an output that holds no sample.
    """
    lines = [("images in", summary.images), ("kept", summary.kept)]
    lines += [(f"dropped: {reason}", number) for reason, number in summary.reasons.items()]
    share = summary.web_won / max(summary.kept, 1)
    others = f"{summary.others} by another run, " if summary.others else ""
    print(f"\n{summary.done} shards committed here, {others}{summary.skipped} before this run")
    for label, number in lines:
        print(f"  {label:<32}{number:>10,}")
    print(f"  {'web caption ranked first':<32}{summary.web_won:>10,}  ({share:.1%})")
    print(f"  {summary.images_per_s:.1f} images/s, {summary.seconds:.1f} s, in {summary.output}")
    for model, size in summary.short.items():
        print(f"  short of device memory: {model} took {size} images at once")
    for note in summary.notes():
        print(f"  {note}")
    print(json.dumps(asdict(summary), ensure_ascii=False), flush=True)
    if summary.kept:
        return 0
    most = sorted(summary.reasons.items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(f"{reason} {number:,}" for reason, number in most)
    print(
        f"nothing was kept: all {summary.images:,} inputs were dropped ({told}); docs/inputs.md "
        "says what each reason means",
        file=sys.stderr,
        flush=True,
    )
    return NOTHING_KEPT
