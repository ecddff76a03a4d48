"""One HTML page over any of a run's folders: CapFilt outputs, training runs, evaluations.

    python jobs/report.py --capfilt OUT --train RUN RUN --eval DIR --out report.html

Nothing is computed again: the page shows what the stages wrote beside their results.
"""

import os
import platform
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

import pyarrow.parquet as pq
import tyro

from cluster import checkpoint
from cluster.logfiles import read_log
from evaluation.audit import audit_capfilt
from evaluation.report.page import (
    CapFilt,
    Curves,
    Dropped,
    Facts,
    Failures,
    FilteredImage,
    RankedCaption,
    Report,
    Section,
    write_report,
)
from evaluation.report.plots import Chart, log_series
from evaluation.report.sections import (
    Evaluated,
    answer_sections,
    caption_section,
    read_evaluation,
    retrieval_section,
    scores,
)
from jobs.cli import run
from pipeline.shards.manifest import Commit, committed
from pipeline.shards.tar import read_span
from pipeline.tinyworld.scene import Scene
from pipeline.tinyworld.text import is_true

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "deepspeed", "transformers", "timm", "ray", "webdataset")
LOSSES = ("loss", "itc", "itm", "itg")
SHOWN_IMAGES = 12
SHOWN_DROPPED = 50


@dataclass(frozen=True)
class ReportArgs:
    """Folders to show; each may be left out."""

    out: Path
    """the page to write"""
    capfilt: tuple[Path, ...] = ()
    """outputs of jobs/capfilt.py"""
    train: tuple[Path, ...] = ()
    """--out folders of jobs/stage1.py and jobs/stage2.py"""
    eval: tuple[Path, ...] = ()
    """--out folders of jobs/evaluate.py"""
    title: str = "Isthmus: a run"


def hardware() -> Facts:
    """What ran this: commit, machine, package versions."""
    command = ["git", "describe", "--always", "--dirty"]
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    rows = {
        "commit": git.stdout.strip() or "not a git clone",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
    }
    return Facts("What ran", rows | {name: version(name) for name in PACKAGES})


def capfilt_sections(out: Path, truth: Mapping[str, Scene] | None = None) -> list[Section]:
    """What one CapFilt run kept and dropped, with sampled images.

    Args:
        out: an output of ``jobs/capfilt.py``.
        truth: scene by sample key where it is known; candidates are then marked right or wrong.

    Raises:
        ValueError: the folder holds no committed shard.
    """
    commits = committed(str(out))
    if not commits:
        raise ValueError(f"--capfilt {out} holds no committed shard; is it an output of capfilt?")
    reasons: Counter[str] = Counter()
    for commit in commits:
        reasons.update(commit.reasons)
    total, ok = sum(c.n for c in commits), sum(c.ok for c in commits)
    samples = _sampled(commits, truth)
    audit = {} if truth is None else audit_capfilt(str(out), truth)
    filtered = CapFilt(
        f"CapFilt: {out.name}",
        {"pairs in": total, "kept": ok, "left out": total - ok, "shards": len(commits)},
        right_before=audit.get("right_before"),
        right_after=audit.get("right_after"),
        web_won=sum(c.web_won for c in commits) / max(ok, 1),
        samples=samples,
    )
    if total == ok:
        return [filtered]
    dropped = [
        Dropped(row["key"], row["status"], row["reason"])
        for row in _rows(commits, ("key", "status", "reason"))
        if row["status"] != "ok"
    ]
    return [filtered, Failures(f"Left out of {out.name}", reasons, dropped[:SHOWN_DROPPED])]


def _rows(commits: Sequence[Commit], columns: Sequence[str]) -> list[dict[str, Any]]:
    return [
        row
        for commit in commits
        for row in pq.read_table(commit.parquet_path, columns=list(columns)).to_pylist()
    ]


def _sampled(commits: Sequence[Commit], truth: Mapping[str, Scene] | None) -> list[FilteredImage]:
    """A few kept images of one shard drawn by name, so that a second report shows the same."""
    rng = random.Random(commits[0].name)
    commit = rng.choice([c for c in commits if c.ok] or list(commits))
    kept = [row for row in pq.read_table(commit.parquet_path).to_pylist() if row["status"] == "ok"]
    images = []
    with open(commit.tar_path, "rb") as tar:
        for row in rng.sample(kept, min(SHOWN_IMAGES, len(kept))):
            span = os.pread(tar.fileno(), row["length"], row["offset"])
            members = read_span(span)
            image = next(data for ext, data in members.items() if ext not in ("json", "txt"))
            images.append(FilteredImage(image, row["key"], _ranked(row, truth)))
    return images


def _ranked(row: Mapping[str, Any], truth: Mapping[str, Scene] | None) -> list[RankedCaption]:
    """The candidates in rank order; the same text is shown once, with how often it was drawn."""
    scene = None if truth is None else truth[row["key"]]
    times = Counter(zip(row["captions"], row["origins"], strict=True))
    kept = {row["captions"][i] for i in row["kept"]}
    shown: dict[tuple[str, str], RankedCaption] = {}
    for text, origin, score in zip(row["captions"], row["origins"], row["scores"], strict=True):
        often = f" ×{times[text, origin]}" if times[text, origin] > 1 else ""
        right = None if scene is None else is_true(text, scene)
        ranked = RankedCaption(text, score, origin + often, text in kept, right)
        shown.setdefault((text, origin), ranked)
    return list(shown.values())


def curves(runs: Sequence[Path]) -> Curves:
    """Losses of every run, one chart a run, and their learning rates and speeds."""
    logs = {path.name: read_log(path / "log.jsonl") for path in runs}
    charts = [
        Chart(f"{name}: loss", log_series(records, LOSSES), y_label="loss")
        for name, records in logs.items()
    ]
    charts += [
        Chart(f"{name}: images a second", log_series(records, ["images_per_s"]), y_label="images/s")
        for name, records in logs.items()
    ]
    return Curves("Training", charts)


def arithmetic(runs: Sequence[Path]) -> Facts:
    """The number formats of every run and the processor of its last checkpoint."""
    rows = {}
    for path in runs:
        try:
            state = checkpoint.find(path).state
        except ValueError:  # a run that has not saved yet
            continue
        formats = state.get("precision")
        if formats:
            said = ", ".join(f"{part} {dtype}" for part, dtype in formats.items())
            rows[path.name] = f"{said}; {state['processor']}"
    return Facts("What training computed in", rows)


def sections_of(
    capfilt: Sequence[Path],
    train: Sequence[Path],
    evaluations: Sequence[Evaluated],
    truth: Mapping[Path, Mapping[str, Scene]] | None = None,
) -> list[Section]:
    """The sections that the given folders fill, in the order of the pipeline."""
    sections: list[Section] = []
    for out in capfilt:
        sections += capfilt_sections(out, (truth or {}).get(out))
    if train:
        sections += [arithmetic(train), curves(train)]
    for e in evaluations:
        sections += retrieval_section(e)
    return [*sections, *caption_section(evaluations), *answer_sections(evaluations)]


def report(args: ReportArgs) -> int:
    """Write the page."""
    if not (args.capfilt or args.train or args.eval):
        raise ValueError("nothing to show: name at least one of --capfilt, --train, --eval")
    evaluations = [read_evaluation(folder) for folder in args.eval]
    sections: list[Section] = [hardware()]
    if evaluations:
        sections.append(scores(evaluations))
    sections += sections_of(args.capfilt, args.train, evaluations)
    write_report(args.out, Report(args.title, sections))
    print(args.out)
    return 0


if __name__ == "__main__":
    run(lambda: report(tyro.cli(ReportArgs, description=__doc__)))
