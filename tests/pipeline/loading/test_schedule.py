import hashlib
from collections import Counter

import pytest

from pipeline.loading.schedule import Mixture, Schedule, SourceOrder, SourceSizes, permutation


def uneven(shards: int, name: str = "a", weight: int = 0) -> SourceSizes:
    return SourceSizes(name, tuple(3 + (7 * i) % 5 for i in range(shards)), weight)


def test_permutation_is_pinned():
    """The order must never change between versions: a resumed run would see other samples."""
    assert permutation(8, "shards", 0, 0, 0).tolist() == PINNED
    assert sorted(permutation(1000, "x")) == list(range(1000))


PINNED = [1, 5, 6, 7, 0, 2, 3, 4]


def test_an_epoch_visits_every_sample_once():
    source = uneven(40)
    order = SourceOrder(source.sizes, seed=3, source=0)
    every = {(shard, i) for shard, size in enumerate(source.sizes) for i in range(size)}
    for epoch in range(3):
        draws = [order.at(epoch * order.total + place) for place in range(order.total)]
        assert {(d.shard, d.index) for d in draws} == every
        assert {d.visit for d in draws} == {epoch}
    assert [order.at(i).shard for i in range(40)] != [
        order.at(order.total + i).shard for i in range(40)
    ]


def test_a_run_is_its_draws():
    """Over the ends of blocks and epochs."""
    order = SourceOrder(uneven(40).sizes, seed=3, source=2)
    count = 2 * order.total + 50
    draws = [order.at(place) for place in range(count)]
    assert list(order.run(0, count)) == draws
    assert list(order.run(7, order.total + 9)) == draws[7 : order.total + 9]
    assert list(order.run(5, 5)) == []
    digest = hashlib.sha256(repr([tuple(draw) for draw in draws]).encode()).hexdigest()
    assert digest[:16] == "cfeb96c4a8d594cf"


def test_only_a_block_of_16_shards_is_open_at_a_time():
    source = uneven(40)
    order = SourceOrder(source.sizes, seed=3, source=0)
    shards = [order.at(place).shard for place in range(order.total)]
    seen, blocks = [], []
    for shard in shards:
        if shard not in seen:
            seen.append(shard)
    for start in range(0, 40, 16):
        blocks.append(set(seen[start : start + 16]))
    block_of = {shard: i for i, block in enumerate(blocks) for shard in block}
    walked = [block_of[shard] for shard in shards]
    assert walked == sorted(walked)
    assert max(walked) == 2


def test_empty_shards_and_blocks():
    sizes = (0,) * 20 + (4,) + (0,) * 20 + (5, 0)
    order = SourceOrder(sizes, seed=0, source=0)
    found = {(d.shard, d.index) for d in map(order.at, range(9))}
    assert found == {(20, i) for i in range(4)} | {(41, i) for i in range(5)}


def test_mixing_counts_by_hand():
    """Weights 5, 3, 1: Sainte-Laguë quotients 5/1, 3/1, 5/3, 5/5 = 3/3 = 1/1, 5/7, 3/5, 5/9."""
    mixture = Mixture([5, 3, 1])
    counts = [0, 0, 0]
    assert [mixture.take(counts) for _ in range(9)] == [0, 1, 0, 0, 1, 2, 0, 1, 0]
    assert counts == [5, 3, 1]


@pytest.mark.parametrize(
    "weights", [[1], [1, 1], [2, 3], [113_000, 13_000, 3_000, 7], [1, 9, 90, 900]]
)
def test_mixing_counts_of_every_prefix(weights):
    mixture = Mixture(weights)
    counts, total = [0] * len(weights), sum(weights)
    for draws in range(3000):
        assert mixture.counts(draws) == counts
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - draws * weight / total) < 1.5
        before = list(counts)
        mixture.take(counts)
        assert sum(counts) - sum(before) == 1 and all(
            a >= b for a, b in zip(counts, before, strict=True)
        )


def test_two_sources_have_their_rounded_share():
    mixture = Mixture([2, 5])
    for draws in range(200):
        assert abs(mixture.counts(draws)[0] - draws * 2 / 7) <= 0.5


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_global_batch_is_the_same_at_any_world_size(world):
    schedule = Schedule([uneven(20, "a", 2), uneven(5, "b", 1)], seed=1, global_batch=12)
    fresh = Schedule([uneven(20, "a", 2), uneven(5, "b", 1)], seed=1, global_batch=12)
    for step in (0, 1, 17, 900):
        slices = [schedule.rank_slice(step, rank, world) for rank in range(world)]
        assert sum(slices, ()) == fresh.step(step)
        assert {len(part) for part in slices} == {12 // world}


def test_seeking_equals_walking():
    sources = [uneven(20, "a", 2), uneven(5, "b", 1)]
    walked = Schedule(sources, seed=1, global_batch=12)
    steps = [walked.step(step) for step in range(60)]
    assert Schedule(sources, seed=1, global_batch=12).step(43) == steps[43]
    counts = Counter(draw.source for step in steps for draw in step)
    assert counts == {0: 480, 1: 240}


def test_replacement_stays_in_the_block():
    schedule = Schedule([uneven(40)], seed=0, global_batch=4)
    draw = schedule.step(0)[0]
    block = {schedule.replacement(draw, attempt) for attempt in range(400)}
    assert draw in block
    assert 16 * 3 <= len(block) <= 16 * 7
    assert schedule.replacement(draw, 0) == draw != schedule.replacement(draw, 1)


def test_fingerprint_tells_runs_apart():
    base = Schedule([uneven(4)], seed=0, global_batch=4).fingerprint()
    assert base == Schedule([uneven(4)], seed=0, global_batch=4).fingerprint()
    others = [
        Schedule([uneven(5)], seed=0, global_batch=4),
        Schedule([uneven(4)], seed=1, global_batch=4),
        Schedule([uneven(4)], seed=0, global_batch=8),
        Schedule([uneven(4, "b")], seed=0, global_batch=4),
    ]
    assert len({base, *(other.fingerprint() for other in others)}) == 5


def test_bad_input():
    with pytest.raises(ValueError, match="no source"):
        Schedule([], seed=0, global_batch=4)
    with pytest.raises(ValueError, match="data x: 0 usable samples"):
        Schedule([SourceSizes("x", (0, 0))], seed=0, global_batch=4)
    with pytest.raises(ValueError, match="not divisible by 3 ranks"):
        Schedule([uneven(4)], seed=0, global_batch=4).rank_slice(0, 0, 3)
