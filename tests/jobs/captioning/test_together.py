"""Several runs on one output at the same time, on a Ray each: one result, both end well."""

import json
import subprocess
from pathlib import Path

import pytest

from pipeline.shards.manifest import committed
from pipeline.shards.parquet import SampleRow, read_parquet
from tests.jobs.test_capfilt import ROOT, command, content, launch, models
from tests.pipeline.sources.test_sources import png, tar

__all__ = ["models"]  # a fixture

SHARDS = 12
COLORS = 20  # of 36 images: the others are duplicates


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that come again in other shards, once behind a caption that is not let through."""
    folder = tmp_path_factory.mktemp("web")
    for shard in range(SHARDS):
        members = []
        for number in range(3 * shard, 3 * shard + 3):
            caption = b"x" * 3000 if number == 2 else b"caption %d" % number
            members += [
                (f"{number:05d}.png", png((number % COLORS, 0, 0))),
                (f"{number:05d}.txt", caption),
            ]
        tar(folder / f"{shard:05d}.tar", members)
    return folder


def rows(out: Path) -> list[SampleRow]:
    parquets = [Path(commit.parquet_path) for commit in committed(str(out))]
    return [row for parquet in parquets for row in read_parquet(parquet.read_bytes())]


@pytest.mark.slow
def test_two_runs_at_once_make_one_result(web: Path, models: list[str], tmp_path: Path):
    options = [*models, "--config.filters.unique"]
    together = tmp_path / "together"
    started = [
        subprocess.Popen(
            command(web, together, options), cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    ended = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    said = [json.loads(out.splitlines()[-1]) for out, _ in ended]
    for (out, _), summary in zip(ended, said, strict=True):
        assert summary["done"] + summary["others"] + summary["skipped"] == SHARDS
        assert summary["images"] == 3 * SHARDS
        assert f"{summary['done']} shards committed here, " in out
        assert ("by another run" in out) == (summary["others"] > 0)
    assert sum(summary["done"] for summary in said) == SHARDS

    alone = tmp_path / "alone"
    done = launch(web, alone, options)
    assert done.returncode == 0, done.stderr
    assert content(together) == content(alone)

    found = {row.key: row for row in rows(alone)}
    assert found["00002"].reason == "caption_too_long" and found["00022"].status == "ok"
    copies = {key for key, row in found.items() if row.reason == "duplicate_image"}
    assert copies == {f"{n:05d}" for n in range(COLORS, 3 * SHARDS)} - {"00022"}
    assert all(found[key].status == "filtered" and found[key].sha256 for key in copies)
    refused = launch(web, alone, models)
    assert refused.returncode == 2 and "filters.unique: True then, False now" in refused.stderr
