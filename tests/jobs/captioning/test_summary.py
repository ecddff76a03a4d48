"""What CapFilt says at its end: filters that looked at nothing, and a run that kept nothing."""

import json
from pathlib import Path

import pytest

from cluster.storage.open import open_storage
from jobs.captioning.counts import count
from jobs.captioning.summary import NOTHING_KEPT, Tally, show, summarise
from pipeline.shards.manifest import Commit, commit_shard, committed


def commits(folder: Path, *shards: tuple[int, dict[str, int], dict[str, int]]) -> list[Commit]:
    """Records of shards: (kept, dropped by reason, unlooked)."""
    for number, (kept, reasons, unlooked) in enumerate(shards):
        failed = sum(reasons.values())
        stats = {"n": kept + failed, "ok": kept, "failed": failed, "filtered": 0, "web_won": 0,
                 "reasons": reasons, "unlooked": unlooked}  # fmt: skip
        commit_shard(open_storage(str(folder)), f"{number:08d}", b"t", b"p", stats)
    return committed(str(folder))


def test_an_output_without_a_sample_has_an_exit_code_and_a_last_line(tmp_path: Path, capsys):
    found = commits(tmp_path, (0, {"no_line": 1, "bad_json": 3}, {}))
    assert show(summarise(found, Tally(), 1.0, "out")) == NOTHING_KEPT == 3
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["kept"] == 0
    assert err.splitlines()[-1].startswith(
        "nothing was kept: all 4 inputs were dropped (bad_json 3, no_line 1); docs/inputs.md"
    )
    assert (Path(__file__).parents[3] / "docs" / "inputs.md").is_file()


def test_columns_that_no_sample_has_are_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    unlooked = {"NSFW": 2, "punsafe": 2}
    found = commits(tmp_path, (2, {}, unlooked), (1, {"no_line": 1}, {"similarity": 1}))
    assert count(found).unlooked == {"NSFW": 2, "punsafe": 2, "similarity": 1}
    assert show(summarise(found, Tally(), 1.0, "out")) == 0
    said = [line.strip() for line in capsys.readouterr().out.splitlines() if "note:" in line]
    assert said == [
        "note: 2 of 4 images have no NSFW or punsafe column and passed the filters that read it",
        "note: 1 of 4 images have no similarity column and passed the filters that read it",
    ]
