"""The output shard of CapFilt: the tar, the parquet and the counts of its commit record."""

import math
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from pipeline.capfilt.describe import Candidate, Described, Kept, select
from pipeline.images import ImageHeader
from pipeline.sample import Sample
from pipeline.shards.parquet import SampleRow, write_parquet
from pipeline.shards.tar import write_tar
from pipeline.text import to_json

JsonLayout = Literal["full", "lavis"]


@dataclass(frozen=True)
class ShardOutput:
    """The bytes of an output shard and the counts of its record."""

    tar: bytes
    parquet: bytes
    stats: dict[str, Any]


def assemble(
    kept: Kept, described: Described, keep: int, json_layout: JsonLayout = "full"
) -> ShardOutput:
    """The output shard: a tar member triple per kept sample, a row per input, the counts.

    ``json_layout`` "lavis" makes of the json member the plain list of captions that the authors'
    reader of their own filtered LAION takes; the parquet has the full record in any case.
    """
    start = time.perf_counter()
    make_members = _members if json_layout == "full" else _lavis_members
    rows, members = list(kept.rows), []
    good: list[SampleRow] = []
    for (sample, header, sha256), candidates in zip(
        kept.samples, described.candidates, strict=True
    ):
        row = _described_row(sample, header, sha256, candidates, keep)
        if row.status == "ok":
            good.append(row)
            members.append((row.key, make_members(sample, row)))
        else:
            rows.append(row)
    tar, spans = write_tar(members)
    rows += [
        replace(row, offset=offset, length=length)
        for row, (offset, length) in zip(good, spans, strict=True)
    ]
    rows.sort(key=lambda row: (row.key, row.status, row.reason))
    stats = {
        "n": len(rows),
        "ok": len(good),
        "reasons": dict(sorted(Counter(row.reason for row in rows if row.reason).items())),
        "failed": sum(row.status == "failed" for row in rows),
        "filtered": sum(row.status == "filtered" for row in rows),
        "web_won": sum(row.origins[row.kept[0]] == "web" for row in good),
        "web_kept": sum(any(row.origins[k] == "web" for k in row.kept) for row in good),
        "seconds": {
            "prepare": round(kept.seconds, 3),
            **{name: round(value, 3) for name, value in described.seconds.items()},
            "assemble": round(time.perf_counter() - start, 3),
        },
        **({"unlooked": dict(sorted(kept.unlooked.items()))} if kept.unlooked else {}),
    }
    return ShardOutput(tar, write_parquet(rows), stats)


def _described_row(
    sample: Sample, header: ImageHeader, sha256: str, candidates: list[Candidate], keep: int
) -> SampleRow:
    row = SampleRow(
        sample.uid,
        sample.key,
        sample.source,
        "failed",
        width=header.width,
        height=header.height,
        sha256=sha256,
        web_caption=sample.caption,
    )
    if not all(math.isfinite(candidate.score) for candidate in candidates):
        return replace(row, reason="score_not_finite")
    ranked, kept = select(candidates, keep)
    if not kept:
        return replace(row, reason="no_caption")
    return replace(
        row,
        status="ok",
        captions=tuple(candidate.text for candidate in ranked),
        scores=tuple(float(np.float32(candidate.score)) for candidate in ranked),
        origins=tuple(candidate.origin for candidate in ranked),
        kept=tuple(kept),
    )


def _members(sample: Sample, row: SampleRow) -> dict[str, bytes]:
    captions = zip(row.captions, row.scores, row.origins, strict=True)
    best = row.captions[row.kept[0]]
    record = {
        "uid": row.uid,
        "key": row.key,
        "source": row.source,
        "width": row.width,
        "height": row.height,
        "sha256": row.sha256,
        "web_caption": row.web_caption,
        "caption": best,  # where img2dataset has it, and who reads its tars looks for it
        "captions": [
            {"text": text, "score": round(score, 6), "origin": origin}
            for text, score, origin in captions
        ],
        "kept": list(row.kept),
        "meta": _plain(sample.meta),
    }
    return {sample.ext: sample.image, "json": to_json(record), "txt": best.encode("utf-8")}


def _lavis_members(sample: Sample, row: SampleRow) -> dict[str, bytes]:
    """The kept captions first, then the others by score, none twice; and the image as ``jpg``.

    LAVIS's readers ask for members of this name only, and open them by their content.
    """
    others = [text for index, text in enumerate(row.captions) if index not in row.kept]
    texts = dict.fromkeys([row.captions[index] for index in row.kept] + others)
    listed = [text for text in texts if text]
    return {"jpg": sample.image, "json": to_json(listed), "txt": listed[0].encode("utf-8")}


def _plain(value: Any) -> Any:
    """A source's own fields as JSON can hold them: NaN becomes null, other things text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
