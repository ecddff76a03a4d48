"""Shares follow the square roots of sizes, at every step, on any number of ranks, after a jump."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.instructions.config import InstructionConfig
from pipeline.instructions.mixing import describe, weights_of
from pipeline.instructions.phrasing import Phrasing
from pipeline.instructions.rows import Row, RowShards
from pipeline.loading.loader import LoaderConfig, make_schedule
from pipeline.loading.samples import Samples
from pipeline.transforms import TrainTransform, TransformConfig

CONFIG = InstructionConfig(weight_factors=(("okvqa", 2.0),))


def source(name: str, size: int, image: Path = Path("none.jpg")) -> RowShards:
    rows = [Row(f"{n}", image, (f"yes {n}", "no"), f"Is it {n}?") for n in range(size)]
    found = RowShards(name, rows)
    found.phrase = Phrasing("vqa")
    return found


def mixed(sizes: dict[str, int], image: Path = Path("none.jpg")) -> list[RowShards]:
    sources = [source(name, size, image) for name, size in sizes.items()]
    for one, weight in zip(sources, weights_of(sources, CONFIG), strict=True):
        one.weight = weight
    return sources


def test_weights_are_roots_times_factors():
    sources = mixed({"coco": 100, "vqav2": 400, "okvqa": 25})
    assert weights_of(sources, CONFIG) == [10_000, 20_000, 10_000]
    by_size = InstructionConfig(balance="size", weight_factors=())
    assert weights_of(sources, by_size) == [100_000, 400_000, 25_000]
    told = describe(sources, CONFIG)
    assert told[0] == "mix of 3 data sets, by square root of size:"
    assert told[1] == "  coco: 100 samples, 25.0 %"
    assert told[3] == "  okvqa: 25 samples, 25.0 %, times 2 (our choice: the paper states none)"


def test_shares_are_those_of_the_roots_in_every_prefix_and_on_any_number_of_ranks():
    sources = mixed({"coco": 90, "vqav2": 50, "okvqa": 9, "web": 1000})
    weights = weights_of(sources, CONFIG)
    schedule = make_schedule(sources, LoaderConfig(), seed=1, global_batch=8)
    counts: Counter[int] = Counter()
    for step in range(1250):  # 10,000 draws
        refs = schedule.step(step)
        for world in (1, 2, 4):
            slices = [schedule.rank_slice(step, rank, world) for rank in range(world)]
            assert [ref for part in slices for ref in part] == list(refs)
        counts.update(ref.source for ref in refs)
        drawn = sum(counts.values())
        for number, weight in enumerate(weights):
            assert abs(counts[number] - drawn * weight / sum(weights)) <= 1.5
    fresh = make_schedule(sources, LoaderConfig(), seed=1, global_batch=8)
    assert fresh.step(777) == schedule.step(777)  # a resumed run begins anywhere


def test_a_visit_is_phrased_alike_everywhere_and_visits_differ(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    sources = mixed({"coco": 3, "vqav2": 2}, tmp_path / "red.png")
    schedule = make_schedule(sources, LoaderConfig(), seed=5, global_batch=4)

    def told(refs):
        samples = Samples(sources, schedule, TrainTransform(TransformConfig(size=8)))
        squares = torch.empty(len(refs), 3, 8, 8, dtype=torch.uint8)
        return [(one.question, one.text) for one in samples.fill(refs, squares)]

    steps = [schedule.step(step) for step in range(30)]
    whole = [told(refs) for refs in steps]
    apart = [[pair for ref in refs for pair in told([ref])] for refs in steps]
    assert whole == apart
    asked: dict[tuple[int, int], set] = {}
    for refs, pairs in zip(steps, whole, strict=True):
        for ref, pair in zip(refs, pairs, strict=True):
            asked.setdefault((ref.source, ref.index), set()).add(pair)
    assert all(len(found) > 5 for found in asked.values())  # templates and answers are drawn anew


def test_nothing_to_learn_is_refused():
    with pytest.raises(ValueError, match="nothing in it to learn"):
        RowShards("coco", [])
    with pytest.raises(ValueError, match="q7 has no answer"):
        RowShards("okvqa", [Row("q7", Path("x.jpg"), (" ",), "Why?")])
