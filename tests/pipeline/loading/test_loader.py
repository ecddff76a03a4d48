import io
import multiprocessing
import os
import signal

import pytest
import torch
from PIL import Image

from pipeline.loading.loader import Batches, LoaderConfig, Samples, make_schedule
from pipeline.loading.samples import names_side
from pipeline.sample import make_uid
from pipeline.shards.reading import data_hash, open_shards
from pipeline.shards.tar import write_tar
from pipeline.transforms import TrainTransform, TransformConfig, normalise
from tests.tiny_training import capfilt_output

TINY = TransformConfig(size=32, scale=(0.5, 1.0))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return capfilt_output(tmp_path_factory.mktemp("data"), shards=3, samples=20)


def batches(url, steps, *, world=1, rank=0, accumulation=1, config=None, transform=TINY, seed=0):
    config = config or LoaderConfig()
    urls, cache = url if isinstance(url, list) else [url], config.node_cache()
    sources = [open_shards(str(part), cache) for part in urls]
    schedule = make_schedule(sources, config, seed=seed, global_batch=8)
    samples = Samples(sources, schedule, TrainTransform(transform), config.captions)

    def tokenise(texts):
        return {"ids": torch.tensor([[len(text)] for text in texts])}

    with Batches(
        samples, config, steps, rank=rank, world=world, accumulation=accumulation, tokenise=tokenise
    ) as made:
        return list(made)


def equal(one, other):
    assert one.uids == other.uids and one.texts == other.texts
    assert torch.equal(one.images_B3HW, other.images_B3HW)


def test_a_stop_leaves_the_rank_its_workers(data):
    """A launcher's or Slurm's SIGTERM reaches the workers too; they go on until the rank ends."""
    config = LoaderConfig(workers=1, prefetch=1)
    source = open_shards(str(data), config.node_cache())
    schedule = make_schedule([source], config, seed=0, global_batch=8)
    samples = Samples([source], schedule, TrainTransform(TINY), config.captions)
    with Batches(samples, config, range(12)) as made:
        next(made)
        workers = multiprocessing.active_children()
        for worker in workers:
            os.kill(worker.pid, signal.SIGTERM)
        assert len(workers) == 1 and len(list(made)) == 11
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0


def test_reads_only_what_was_kept(data):
    source = open_shards(str(data))
    assert source.sizes == (16, 16, 16)
    epoch = batches(data, range(6))
    uids = [uid for batch in epoch for uid in batch.uids]
    wanted = {
        make_uid("tiny", f"{s:08d}", f"{s:04d}{i:04d}")
        for s in range(3)
        for i in range(20)
        if i % 5 != 4
    }
    assert len(uids) == 48 and set(uids) == wanted
    batch = epoch[0]
    assert batch.images_B3HW.shape == (8, 3, 32, 32)
    assert batch.images_B3HW.dtype == torch.uint8 and batch.pixels_B3HW().dtype == torch.float32
    assert torch.equal(batch.pixels_B3HW()[3], normalise(batch.images_B3HW[3]))
    assert batch.tokens["ids"].flatten().tolist() == [len(text) for text in batch.texts]
    assert not batch.replaced


def test_resume_and_workers_and_world_give_the_same_batches(data):
    whole = batches(data, range(9))
    for one, other in zip(whole[7:], batches(data, range(7, 9)), strict=True):
        equal(one, other)
    workers = batches(data, range(3), config=LoaderConfig(workers=2))
    for one, other in zip(whole[:3], workers, strict=True):
        equal(one, other)
    halves = [batches(data, range(7, 8), world=2, rank=rank)[0] for rank in (0, 1)]
    assert whole[7].uids == halves[0].uids + halves[1].uids
    assert torch.equal(whole[7].images_B3HW, torch.cat([half.images_B3HW for half in halves]))
    micro = batches(data, range(7, 8), accumulation=2)
    assert whole[7].uids == micro[0].uids + micro[1].uids


def test_batches_that_are_kept_stay_as_they_are(data):
    """More of them than there is shared room for: none is written over, all arrive."""
    shared = batches(data, range(12), config=LoaderConfig(workers=2, prefetch=1))
    for one, other in zip(batches(data, range(12)), shared, strict=True):
        equal(one, other)
        assert torch.equal(one.image_ids_B, other.image_ids_B)
        assert torch.equal(one.draws_B2, other.draws_B2)
        assert torch.equal(one.tokens["ids"], other.tokens["ids"])


def test_visits_differ(data):
    """Another epoch: other captions and crops of the same samples; another seed: another order."""
    first, second = (batches(data, range(e * 6, e * 6 + 6)) for e in (0, 1))
    texts = [
        {uid: text for batch in epoch for uid, text in zip(batch.uids, batch.texts, strict=True)}
        for epoch in (first, second)
    ]
    changed = sum(texts[0][uid] != texts[1][uid] for uid in texts[0])
    assert 10 < changed < 38  # half of 48, two captions each
    assert batches(data, range(1), seed=1)[0].uids != first[0].uids


def test_leaves_the_global_generator_alone(data):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    batches(data, range(2))
    assert torch.equal(torch.rand(1), expected)


def test_bad_samples_are_replaced_and_said(tmp_path):
    url = capfilt_output(tmp_path / "bad", shards=2, samples=20, bad=(3, 20))
    epoch = batches(url, range(4))
    assert all(len(batch.uids) == 8 for batch in epoch)
    replaced = [line for batch in epoch for line in batch.replaced]
    assert len(replaced) >= 2
    assert all("not_an_image" in line and ".tar#" in line for line in replaced)


def test_all_bad_stops(tmp_path):
    url = capfilt_output(tmp_path / "bad", shards=1, samples=10, bad=tuple(range(8)))
    with pytest.raises(ValueError, match="unreadable samples in a row"):
        batches(url, range(1))


def test_flips_keep_sides(data):
    """With keep_sides, a square that the text puts to the left is at the left in the image."""
    config = TransformConfig(size=64, scale=(1, 1), ratio=(1, 1), flip=1.0, keep_sides=True)
    sided = 0
    for batch in batches(data, range(6), transform=config):
        for image, text in zip(batch.images_B3HW, batch.texts, strict=True):
            bright = image.float().sum(0).mean(0)
            if names_side(text):
                sided += 1
                at_left = bright[:32].mean() > bright[32:].mean()
                assert at_left == ("left" in text)
    assert sided > 10


def jpeg(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 0, 0)).save(out, "JPEG")
    return out.getvalue()


def test_reads_tars_of_others(tmp_path):
    members = [
        (f"{i:03d}", {"jpg": jpeg(10 * i), "txt": f"text {i}".encode(), "json": b"{}"})
        for i in range(8)
    ]
    (tmp_path / "00000.tar").write_bytes(write_tar(members)[0])
    batch = batches(tmp_path, range(1))[0]
    assert sorted(batch.texts) == [f"text {i}" for i in range(8)]
    assert len(set(batch.uids)) == 8


def test_several_sources_by_weight(data, tmp_path):
    other = capfilt_output(tmp_path / "other", shards=1, samples=10, seed=9)
    config = LoaderConfig(weights=(3, 1))
    made = batches([data, other], range(8), config=config)
    theirs = {make_uid("tiny", "00000000", f"0000{i:04d}") for i in range(10)}
    assert len(made) == 8 and theirs
    with pytest.raises(ValueError, match=r"loader.weights = \(3, 1\): 1 sources"):
        batches(data, range(1), config=config)


def test_hash_follows_the_content(data, tmp_path):
    same = capfilt_output(tmp_path / "same", shards=3, samples=20)
    other = capfilt_output(tmp_path / "other", shards=3, samples=20, seed=1)
    hashes = [data_hash([open_shards(str(url))]) for url in (data, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_bad_input(tmp_path, data):
    with pytest.raises(ValueError, match="no such folder"):
        open_shards(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither commit records nor"):
        open_shards(str(tmp_path / "empty"))
    (tmp_path / "started" / "shards").mkdir(parents=True)
    with pytest.raises(ValueError, match="no commit record"):
        open_shards(str(tmp_path / "started"))
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "x.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match=r"x\.tar"):
        open_shards(str(tmp_path / "corrupt"))
    with pytest.raises(ValueError, match="not divisible by 3 ranks"):
        batches(data, range(1), world=3)
    with pytest.raises(ValueError, match="equal micro-batches"):
        batches(data, range(1), accumulation=3)
