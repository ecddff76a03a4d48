"""Shards are fetched ahead: whole blocks, shared among the ranks of a node, whatever fails."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.loading import fetcher as fetching
from pipeline.loading.fetcher import Fetcher
from pipeline.loading.grouping import GroupedSchedule
from pipeline.loading.schedule import BLOCK_SHARDS, Schedule, SourceSizes


class Remote:
    """A source that notes what is fetched; shards in ``busy`` are another process's."""

    name, remote = "s3://bucket/data", True

    def __init__(self, shards: int = 64) -> None:
        self.tars = [f"{number}.tar" for number in range(shards)]
        self.busy: set[int] = set()
        self.faults: dict[int, list[Exception]] = {}
        self.fetched: list[int] = []

    def fetch(self, shard: int) -> bool:
        if self.faults.get(shard):
            raise self.faults[shard].pop()
        if shard not in self.busy:
            self.fetched.append(shard)
        return shard not in self.busy


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def fetcher(monkeypatch: pytest.MonkeyPatch):
    """A maker of fetchers that are closed when the test ends."""
    monkeypatch.setattr(fetching, "_LOOK_S", 0.02)
    made: list[Fetcher] = []

    def make(*arguments, **options) -> Fetcher:
        made.append(Fetcher(*arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
        one._thread.join(10)
        assert not one._thread.is_alive()


def test_ranks_of_a_node_begin_at_different_shards_of_the_urgent_group(fetcher):
    groups = [[(0, number) for number in range(4)], [(0, number) for number in range(4, 8)]]
    for turn in range(5):
        source = Remote()
        fetcher([source], lambda step: groups, turn=turn)
        wait_for(lambda source=source: len(source.fetched) == 8)
        assert source.fetched[0] == turn % 4 and source.fetched[4] == 4 + turn % 4
        assert sorted(source.fetched[:4]) == [0, 1, 2, 3]


def test_what_another_rank_fetches_does_not_keep_this_one_waiting(fetcher):
    source = Remote()
    source.busy = {0, 2}
    fetcher([source], lambda step: [[(0, number) for number in range(4)]])
    wait_for(lambda: source.fetched == [1, 3])
    source.busy = {2}
    wait_for(lambda: source.fetched == [1, 3, 0])  # looked at again without a step of training


def test_a_failed_fetch_is_told_of_and_tried_again(fetcher, monkeypatch, caplog):
    monkeypatch.setattr(fetching, "_FIRST_PAUSE_S", 0.05)
    source = Remote()
    source.faults = {1: [KeyError("a bug"), OSError("a full disk")]}
    fetcher([source], lambda step: [[(0, number) for number in range(3)]])
    wait_for(lambda: source.fetched == [0, 2, 1])
    told = [record.message for record in caplog.records]
    assert len(told) == 2 and "s3://bucket/data/1.tar could not be fetched ahead" in told[0]
    assert "a full disk" in told[0] and "a bug" in told[1]


def test_a_lasting_fault_is_not_tried_at_every_step(fetcher):
    source, tried = Remote(), []
    source.fetch = lambda shard: tried.append(shard) or (_ for _ in ()).throw(OSError("gone"))
    one = fetcher([source], lambda step: [[(0, 0), (0, step)]], first=1)
    for step in range(2, 30):
        one.at(step)
        wait_for(lambda step=step: step in tried)
    assert tried.count(0) == 1


def test_the_training_moves_it_on(fetcher):
    source, seen = Remote(), threading.Event()

    def near(step: int) -> list[list[tuple[int, int]]]:
        seen.set()
        return [[(0, step)], [(0, step + 1)]]

    one = fetcher([source], near, first=7)
    wait_for(lambda: source.fetched == [7, 8])
    one.at(8)
    wait_for(lambda: source.fetched == [7, 8, 9])


# ------------------------------------------------------------------------- what is near

SIZES = [SourceSizes("a", (3, 5, 0, 7) * 20), SourceSizes("b", (4,) * 40), SourceSizes("c", (2, 1))]


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("ahead", [0, 3])
def test_whole_blocks_are_near_before_they_begin(window: int, ahead: int):
    if window:
        lengths = [[np.arange(size) for size in source.sizes] for source in SIZES]
        schedule: Schedule = GroupedSchedule(SIZES, 0, 8, lengths, window)
    else:
        schedule = Schedule(SIZES, 0, 8)
    stop = 120
    near = [schedule.shards_near(step, ahead, stop) for step in range(stop)]
    drawn = [{(ref.source, ref.shard) for ref in schedule.step(step)} for step in range(stop)]
    for step in range(stop):
        now, later = map(set, near[step])
        for coming in range(step, min(stop, step + ahead + 1)):
            assert drawn[coming] <= now
        if step + ahead + 1 < stop:
            assert drawn[step + ahead + 1] <= now | later  # the next block is there, whole
        assert not now & later
    for source in (0, 1):  # a block of 16 each, at most three where the steps meet its ends
        assert all(
            len([pair for pair in now + later if pair[0] == source]) <= 3 * BLOCK_SHARDS
            for now, later in near
        )
    assert any(len(later) >= BLOCK_SHARDS for _, later in near)


def test_nothing_is_fetched_for_steps_behind_the_last():
    schedule = Schedule([SourceSizes("a", (8,) * 64)], 0, 8)
    now, later = schedule.shards_near(0, 50, 2)
    assert len(now) == BLOCK_SHARDS and later == []
    now, later = schedule.shards_near(0, 50, 1000)
    assert len(now) == 4 * BLOCK_SHARDS and later == []  # all of an epoch: the next is the same


def test_a_small_source_of_large_weight_is_not_gone_through_epoch_by_epoch():
    schedule = Schedule([SourceSizes("a", (1, 1), 1000), SourceSizes("b", (9,) * 99, 1)], 0, 1000)
    started = time.monotonic()
    now, _ = schedule.shards_near(10_000, 50, 1_000_000)
    assert {pair for pair in now if pair[0] == 0} == {(0, 0), (0, 1)}
    assert time.monotonic() - started < 1
