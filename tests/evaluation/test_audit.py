"""The audit on an output whose captions are known."""

from pathlib import Path

import pytest

from cluster.storage.open import open_storage
from evaluation.audit import audit_capfilt
from pipeline.shards.manifest import commit_shard
from pipeline.shards.parquet import SampleRow, write_parquet
from pipeline.shards.tar import write_tar
from pipeline.tinyworld.scene import Scene, Thing

SCENE = Scene((Thing("red", "star", "small", "top", "left"),), "plain")


def row(key: str, status: str, web: str, captions: list[str], kept: list[int]) -> SampleRow:
    return SampleRow(
        uid=key * 32,
        key=key,
        source="test",
        status=status,
        reason="",
        web_caption=web,
        captions=captions,
        scores=[0.5] * len(captions),
        origins=["synthetic"] * (len(captions) - 1) + ["web"] * bool(captions),
        kept=kept,
    )


def test_shares_of_right_captions(tmp_path: Path) -> None:
    rows = [
        row("a", "ok", "IMG_1.jpg", ["a red star", "a blue star", "IMG_1.jpg"], [0, 1]),
        row("b", "ok", "a red star", ["a red star in the top left", "a red star"], [0, 1]),
        row("c", "failed", "a green ring", [], []),
    ]
    storage = open_storage(str(tmp_path))
    tar, _ = write_tar([])
    stats = {"n": 3, "ok": 2, "filtered": 0, "failed": 1, "reasons": {}, "web_won": 0}
    commit_shard(storage, "00000000", tar, write_parquet(rows), stats)

    found = audit_capfilt(str(tmp_path), dict.fromkeys("abc", SCENE))

    assert found["samples"] == 3
    assert found["right_before"] == pytest.approx(1 / 3)
    assert found["right_after"] == pytest.approx(3 / 4)
    assert found["right_synthetic"] == pytest.approx(2 / 3)
