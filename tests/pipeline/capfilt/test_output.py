"""LAVIS's layout of the json members: its reader takes it, and our loader loses nothing by it."""

import json
import random
import shutil
from pathlib import Path

import pytest
import webdataset

from cluster.storage.open import open_storage
from pipeline.capfilt.describe import describe, prepare
from pipeline.capfilt.filters import FilterConfig
from pipeline.capfilt.output import JsonLayout, assemble
from pipeline.loading.loader import LoaderConfig
from pipeline.sample import Sample
from pipeline.shards.manifest import commit_shard
from tests.pipeline.capfilt.test_describe import SPECS, captions, encoded, sample, scores
from tests.pipeline.loading.test_loader import batches, equal


def write(folder: Path, layout: JsonLayout) -> Path:
    """Two shards of eight samples; one sample in four has captions of people."""
    for shard in range(2):
        records: list[Sample] = []
        for number in range(8):
            texts = tuple(f"human {number} {index}" for index in range(5))
            human = {"human": True, "captions": texts} if number % 4 == 0 else {}
            image = encoded(value=16 * number + shard)
            records.append(sample(f"{shard}{number}", image, f"web caption {number}", **human))
        kept, model_input = prepare(records, FilterConfig(), *SPECS)
        described = describe(model_input, captions, scores, batch_size=4)
        out = assemble(kept, described, keep=2, json_layout=layout)
        commit_shard(open_storage(str(folder)), f"{shard:08d}", out.tar, out.parquet, out.stats)
    return folder


@pytest.fixture(scope="module")
def lavis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lavis"), "lavis")


@pytest.mark.parametrize("policy", ["random_top2", "weighted", "top1"])
def test_the_loader_gives_the_same_batches_in_both_layouts(
    lavis: Path, tmp_path: Path, policy: str
):
    config = LoaderConfig(captions=policy)
    full = batches(write(tmp_path / "full", "full"), range(4), config=config)
    found = batches(lavis, range(4), config=config)
    for one, other in zip(full, found, strict=True):
        equal(one, other)
        assert one.image_ids_B.tolist() == other.image_ids_B.tolist()
    said = {text for batch in found for text in batch.texts}
    assert any(text.startswith("human") for text in said) and not found[0].replaced


def test_lavis_tars_without_our_parquet_are_read_from_their_lists(lavis: Path, tmp_path: Path):
    for path in (lavis / "shards").glob("*.tar"):
        shutil.copy(path, tmp_path)
    said = {text for step in batches(tmp_path, range(6)) for text in step.texts}
    listed = {tuple(texts[:2]) for _, texts in as_lavis_reads(lavis)}
    assert said <= {text for pair in listed for text in pair}
    assert len(said) > len(listed)  # not the first caption only
    best = batches(tmp_path, range(2), config=LoaderConfig(captions="top1"))
    assert {text for step in best for text in step.texts} == {pair[0] for pair in listed}


def as_lavis_reads(folder: Path) -> list[tuple[object, list[str]]]:
    """(picture, captions) by the pipeline that LAVIS's LAION reader is made of."""
    tars = sorted(map(str, (folder / "shards").glob("*.tar")))
    data = webdataset.DataPipeline(
        webdataset.SimpleShardList(tars),
        webdataset.tarfile_to_samples(),
        webdataset.decode("pilrgb"),
        webdataset.to_tuple("jpg", "json"),
    )
    return list(data)


def test_lavis_reader_takes_two_good_captions_of_every_sample(lavis: Path):
    found = as_lavis_reads(lavis)
    assert len(found) == 16
    for picture, texts in found:
        assert picture.size == (20, 10) and isinstance(texts, list) and len(texts) >= 4
        assert all(isinstance(text, str) for text in texts) and len(set(texts)) == len(texts)
        assert random.Random(0).choice(texts[:2]) in texts
    assert json.dumps(found[1][1]) == json.dumps(
        ["web caption 1", "uid-01 2", "uid-01 1", "uid-01 0"]
    )
