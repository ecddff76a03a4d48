"""Commands on a finished or growing CapFilt output: verify, stats, compact, gallery.

    python jobs/capfilt.py verify  --output URL    hash every committed byte again
    python jobs/capfilt.py stats   --output URL    counts, reasons, seconds of each stage
    python jobs/capfilt.py compact --output URL    write manifest.parquet again
    python jobs/capfilt.py gallery --outputs URL URL --page FILE.html    one page over several

Two commands take the options of a run instead, ``--recipe NAME --input URL --output URL``:

    python jobs/capfilt.py plan ...                 what would run, and how long it would take
    python jobs/capfilt.py retry --reason missing_file ...    dropped inputs once more
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro
from tqdm import tqdm

from cluster.storage.base import Storage
from jobs.captioning.counts import count, existing
from pipeline.capfilt.gallery import build_gallery
from pipeline.shards.manifest import Commit, compact
from pipeline.shards.parquet import SampleRow, read_parquet

_READERS = 8


@dataclass(frozen=True)
class OutputArgs:
    """An output of CapFilt.

    Attributes:
        output: folder or s3:// URL of the output.
    """

    output: str


def _output(arguments: Sequence[str], description: str) -> tuple[Storage, list[Commit]]:
    """The output that the command line names."""
    return existing(tyro.cli(OutputArgs, args=arguments, description=description).output)


def verify(arguments: Sequence[str]) -> int:
    """Read everything committed again; exit code 1 where something is not as its record says."""
    storage, commits = _output(arguments, "Read and hash every committed file again.")
    wrong: list[str] = []
    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(partial(check_commit, storage), commits)
        for lines in tqdm(found, total=len(commits), unit="shard", desc="verify"):
            wrong += lines
    print("\n".join(wrong) or f"{len(commits)} shards are as their records say: nothing is wrong")
    return 1 if wrong else 0


def check_commit(storage: Storage, commit: Commit) -> list[str]:
    """The faults of a committed shard, a line each: content, counts, spans."""
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


def _check_rows(commit: Commit, rows: Sequence[SampleRow]) -> Iterator[str]:
    found = Counter(row.status for row in rows)
    for status in ("ok", "filtered", "failed"):
        if found[status] != getattr(commit, status):
            said = getattr(commit, status)
            yield f"{commit.parquet}: {found[status]} rows are {status}, its record says {said}"
    beyond = sum(row.offset + row.length > commit.tar_bytes for row in rows)
    if beyond:
        yield f"{commit.parquet}: {beyond} samples end behind their tar"


def stats(arguments: Sequence[str]) -> int:
    """Print an output's counts and the seconds of each stage; a last line of JSON."""
    _, commits = _output(arguments, "Counts of an output, and seconds of each stage.")
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
    storage, commits = _output(arguments, "Write manifest.parquet and sizes.json again.")
    compact(storage, commits)
    print(f"{len(commits)} records in {storage.url}/manifest.parquet")
    return 0


@dataclass(frozen=True)
class GalleryArgs:
    """One gallery page over several outputs, such as those of several sources.

    Attributes:
        outputs: folders or s3:// URLs of the outputs.
        page: HTML file to write.
        count: number of images on the page, over all outputs.
    """

    outputs: tuple[str, ...]
    page: Path
    count: int = 120


def write_gallery(arguments: Sequence[str]) -> int:
    """Write a page of sampled images with their captions and scores."""
    args = tyro.cli(
        GalleryArgs, args=arguments, description="One gallery page over several outputs."
    )
    if not args.outputs or args.count < 1:
        raise ValueError("--outputs: give at least one output, and a --count of 1 or more")
    page = build_gallery([existing(output) for output in args.outputs], args.count)
    args.page.parent.mkdir(parents=True, exist_ok=True)
    args.page.write_bytes(page)
    print(f"{len(args.outputs)} outputs in {args.page}")
    return 0


TOOLS: dict[str, Callable[[Sequence[str]], int]] = {
    "verify": verify,
    "stats": stats,
    "compact": rewrite_manifest,
    "gallery": write_gallery,
}
"""The commands by name: each takes its options and returns the exit code."""
