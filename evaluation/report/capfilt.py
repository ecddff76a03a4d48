"""The report's sections on CapFilt outputs."""

import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from evaluation.audit import audit_capfilt
from evaluation.report.page import (
    CapFilt,
    Dropped,
    Failures,
    FilteredImage,
    RankedCaption,
    Section,
)
from pipeline.shards.manifest import Commit, committed
from pipeline.shards.tar import read_span
from pipeline.tinyworld.scene import Scene
from pipeline.tinyworld.text import is_true

_SHOWN_IMAGES = 12
_SHOWN_DROPPED = 50


def capfilt_sections(out: Path, truth: Mapping[str, Scene] | None = None) -> list[Section]:
    """Kept and left-out samples of one CapFilt run, with sampled images.

    Args:
        out: an output of ``jobs/capfilt.py``.
        truth: scene of each sample by its key; with it, candidates are marked right or wrong.

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
    return [filtered, Failures(f"Left out of {out.name}", reasons, dropped[:_SHOWN_DROPPED])]


def _rows(commits: Sequence[Commit], columns: Sequence[str]) -> list[dict[str, Any]]:
    return [
        row
        for commit in commits
        for row in pq.read_table(commit.parquet_path, columns=list(columns)).to_pylist()
    ]


def _sampled(commits: Sequence[Commit], truth: Mapping[str, Scene] | None) -> list[FilteredImage]:
    """A few kept images of one shard. The draw is seeded by a shard's name: reports agree."""
    rng = random.Random(commits[0].name)
    commit = rng.choice([c for c in commits if c.ok] or list(commits))
    kept = [row for row in pq.read_table(commit.parquet_path).to_pylist() if row["status"] == "ok"]
    images = []
    with open(commit.tar_path, "rb") as tar:
        for row in rng.sample(kept, min(_SHOWN_IMAGES, len(kept))):
            span = os.pread(tar.fileno(), row["length"], row["offset"])
            members = read_span(span)
            image = next(data for ext, data in members.items() if ext not in ("json", "txt"))
            images.append(FilteredImage(image, row["key"], _ranked(row, truth)))
    return images


def _ranked(row: Mapping[str, Any], truth: Mapping[str, Scene] | None) -> list[RankedCaption]:
    """The candidates in rank order; a text that was drawn several times is shown once."""
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
