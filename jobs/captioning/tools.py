"""What one asks of a CapFilt output besides running it: verify, stats, compact, gallery, retry.

python jobs/capfilt.py plan   --recipe NAME --input URL --output URL  what would run
python jobs/capfilt.py verify --output URL   every byte again
python jobs/capfilt.py stats  --output URL   counts, reasons, seconds
python jobs/capfilt.py compact --output URL   manifest.parquet again
python jobs/capfilt.py gallery --outputs URL URL --page FILE.html   one page over several outputs
python jobs/capfilt.py retry  --reason missing_file … (as for run)     failed inputs once more
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro
from tqdm import tqdm

from cluster.storage.base import Storage
from cluster.storage.open import open_storage
from pipeline.capfilt.gallery import build_gallery
from pipeline.shards.manifest import Commit, committed, compact
from pipeline.shards.tar import Row, read_parquet

_READERS = 8
FINAL = frozenset(
    {"duplicate_key", "duplicate_image"}
)  # the input itself says no: trying again is pointless


@dataclass(frozen=True)
class OutputArgs:
    """An output of CapFilt.

    Attributes:
        output: its folder or s3:// URL.
    """

    output: str


def existing(output: str) -> tuple[Storage, list[Commit]]:
    """An output's storage and records.

    Raises:
        ValueError: nothing is committed there.
    """
    commits = committed(output)
    if not commits:
        raise ValueError(f"--output {output}: no commit record in shards/; give a CapFilt output")
    return open_storage(output), commits


# --------------------------------------------------------------------------------- verify


def verify(arguments: Sequence[str]) -> int:
    """Read everything committed again; exit code 1 where something is not as its record says."""
    output = tyro.cli(OutputArgs, args=arguments, description="verify").output
    storage, commits = existing(output)
    wrong: list[str] = []
    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(partial(check_commit, storage), commits)
        for lines in tqdm(found, total=len(commits), unit="shard", desc="verify"):
            wrong += lines
    print("\n".join(wrong) or f"{len(commits)} shards are as their records say: nothing is wrong")
    return 1 if wrong else 0


def check_commit(storage: Storage, commit: Commit) -> list[str]:
    """What is wrong with a committed shard, a line each: content, counts, spans."""
    wrong = []
    for name, sha256 in ((commit.tar, commit.tar_sha256), (commit.parquet, commit.parquet_sha256)):
        try:
            with storage.local_copy(name) as path, open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            wrong.append(f"{name}: missing; remove its record and run again")
            continue
        if digest != sha256:
            wrong.append(f"{name}: sha256 {digest}, its record says {sha256}; remove it and its")
            wrong[-1] += " record and run again"
    return wrong or list(_check_rows(commit, read_parquet(storage.read(commit.parquet))))


def _check_rows(commit: Commit, rows: Sequence[Row]) -> Iterator[str]:
    found = Counter(row.status for row in rows)
    for status in ("ok", "filtered", "failed"):
        if found[status] != getattr(commit, status):
            said = getattr(commit, status)
            yield f"{commit.parquet}: {found[status]} rows are {status}, its record says {said}"
    beyond = sum(row.offset + row.length > commit.tar_bytes for row in rows)
    if beyond:
        yield f"{commit.parquet}: {beyond} samples end behind their tar"


# ---------------------------------------------------------------------------------- stats


@dataclass(frozen=True)
class Counts:
    """What an output holds: every input once, whatever was tried again.

    Attributes:
        images: inputs; ``kept`` are in the tars, the others are counted by reason.
        web_won: how often the web caption ranked first.
        unlooked: inputs that passed a filter because they lack the column which it reads, by
            column.
    """

    images: int
    kept: int
    filtered: int
    failed: int
    reasons: dict[str, int]
    web_won: int
    unlooked: dict[str, int]

    def notes(self) -> list[str]:
        """A line for the filters that did not look at all inputs."""
        columns: dict[int, list[str]] = {}
        for name, number in self.unlooked.items():
            columns.setdefault(number, []).append(name)
        return [
            f"note: {number:,} of {self.images:,} images have no {' or '.join(names)} column and "
            "passed the filters that read it"
            for number, names in columns.items()
        ]


def count(commits: Sequence[Commit]) -> Counts:
    """Sum the records; what a retry took up again no longer counts where it first failed."""
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


def stats(arguments: Sequence[str]) -> int:
    """Print an output's counts and where its time went; a last line of JSON."""
    output = tyro.cli(OutputArgs, args=arguments, description="stats").output
    _, commits = existing(output)
    counts = count(commits)
    seconds = Counter[str]()
    for commit in commits:
        seconds.update(commit.seconds)
    lines = [("shards", f"{len(commits):,}"), ("images in", f"{counts.images:,}")]
    lines += [("kept", f"{counts.kept:,}")]
    lines += [(f"dropped: {reason}", f"{n:,}") for reason, n in counts.reasons.items()]
    share = counts.web_won / max(1, counts.kept)
    lines += [("web caption ranked first", f"{counts.web_won:,} ({share:.1%})")]
    lines += [("bytes in tars", f"{sum(commit.tar_bytes for commit in commits):,}")]
    lines += [(f"seconds: {stage}", f"{spent:,.1f}") for stage, spent in sorted(seconds.items())]
    for label, value in lines:
        print(f"  {label:<32}{value:>16}")
    for note in counts.notes():
        print(f"  {note}")
    total = {name: round(spent, 3) for name, spent in sorted(seconds.items())}
    print(json.dumps({**counts.__dict__, "shards": len(commits), "seconds": total}))
    return 0


def rewrite_manifest(arguments: Sequence[str]) -> int:
    """Write manifest.parquet and sizes.json from the records."""
    storage, commits = existing(tyro.cli(OutputArgs, args=arguments, description="compact").output)
    compact(storage, commits)
    print(f"{len(commits)} records in {storage.url}/manifest.parquet")
    return 0


@dataclass(frozen=True)
class GalleryArgs:
    """One page over several outputs, such as those of several sources.

    Attributes:
        outputs: their folders or s3:// URLs.
        page: the HTML file to write.
        count: images in all.
    """

    outputs: tuple[str, ...]
    page: Path
    count: int = 120


def write_gallery(arguments: Sequence[str]) -> int:
    """Write the page."""
    args = tyro.cli(GalleryArgs, args=arguments, description="gallery")
    if not args.outputs or args.count < 1:
        raise ValueError("--outputs: give at least one output, and a --count of 1 or more")
    page = build_gallery([existing(output) for output in args.outputs], args.count)
    args.page.parent.mkdir(parents=True, exist_ok=True)
    args.page.write_bytes(page)
    print(f"{len(args.outputs)} outputs in {args.page}")
    return 0


def estimate(commits: Sequence[Commit], todo: int, actors: int) -> str:
    """How long ``todo`` shards take, judged by those that are done."""
    models = [commit.seconds.get("models", 0.0) for commit in commits]
    if not todo:
        return "nothing is left to do"
    if not models:
        return "no shard is done yet: the first ones will tell how long it takes"
    left = sum(models) / len(models) * todo / actors
    hours, minutes = divmod(int(left / 60), 60)
    return f"about {hours} h {minutes:02d} min of model time on {actors} workers, judged by those"


# ---------------------------------------------------------------------------------- retry


def to_retry(
    storage: Storage, commits: Sequence[Commit], reasons: frozenset[str]
) -> dict[str, list[Row]]:
    """Dropped inputs with one of the reasons by the name of their shard, as they last stand.

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
    last: dict[str, tuple[str, Row]] = {}
    for commit in sorted(commits, key=lambda commit: (commit.retry_of != "", commit.name)):
        if commit.retry_of or any(reason in reasons for reason in commit.reasons):
            for row in read_parquet(storage.read(commit.parquet)):
                if row.reason not in FINAL:
                    last[row.uid] = (commit.retry_of or commit.name, row)
    found: dict[str, list[Row]] = {}
    for shard, row in last.values():
        if row.status != "ok" and row.reason in reasons:
            found.setdefault(shard, []).append(row)
    return found


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


TOOLS: dict[str, Callable[[Sequence[str]], int]] = {
    "verify": verify,
    "stats": stats,
    "compact": rewrite_manifest,
    "gallery": write_gallery,
}


def main(arguments: Sequence[str]) -> int:
    """Run the tool that the first argument names."""
    return TOOLS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit("run it as: python jobs/capfilt.py verify --output URL")
