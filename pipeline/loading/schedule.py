"""The global sample order: a pure function of (seed, step), whatever the ranks and workers.

It works on shard sizes alone. Each epoch of a source shuffles its shards, cuts them into blocks of
16 and shuffles the samples within each block, so that only a block's shards need be near. Sources
are mixed by Sainte-Laguë counts on integer weights: after any number of draws each source has had
its share, rounded, and counts never step back. Seeking is arithmetic: nothing is stored.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

BLOCK_SHARDS = 16


@dataclass(frozen=True, slots=True)
class SourceSizes:
    """Sizes of a source, which are all that the schedule knows of it.

    Attributes:
        name: name for messages and the fingerprint.
        sizes: number of usable samples in each shard.
        weight: integer share in the mix; 0 stands for the number of samples, so that every sample
            of every source comes equally often.
    """

    name: str
    sizes: tuple[int, ...]
    weight: int = 0


class SampleRef(NamedTuple):
    """Where one sample of the order is; a plain tuple, since they are made by the thousand.

    Attributes:
        source, shard, index: numbers of its source, its shard there, and its place among the
            usable samples of the shard.
        visit: epoch of its source: 0 the first time that the source is gone through.
        position: number within the source's epoch, from which ``Schedule.replacement`` starts.
    """

    source: int
    shard: int
    index: int  # type: ignore[assignment]  # the method of tuples is not needed
    visit: int
    position: int


class SourceOrder:
    """The endless order of one source's samples."""

    def __init__(self, sizes: Sequence[int], seed: int, source: int) -> None:
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._key = (seed, source)
        self.total = int(self._sizes.sum())
        self._source = source
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._block = lru_cache(maxsize=4)(self._make_block)

    def at(self, number: int) -> SampleRef:
        """One sample of the endless order, counted from 0."""
        return next(self.run(number, number + 1))

    def run(self, first: int, last: int) -> Iterator[SampleRef]:
        """The samples from ``first`` up to ``last`` of the endless order, a block at a time."""
        while first < last:
            epoch, position = divmod(first, self.total)
            block, start = self._block_of(epoch, position)
            order, shards, ends = self._block(epoch, block)
            local = order[position - start :][: last - first]
            which = np.searchsorted(ends, local, side="right")
            index = local - (ends - self._sizes[shards])[which]
            found = zip(shards[which].tolist(), index.tolist(), strict=True)
            for number, (shard, within) in enumerate(found):
                yield SampleRef(self._source, shard, within, epoch, position + number)
            first += len(local)

    def next_in_block(self, ref: SampleRef, step: int) -> SampleRef:
        """The sample ``step`` positions later in the same block, around its end."""
        block, first = self._block_of(ref.visit, ref.position)
        size = len(self._block(ref.visit, block)[0])
        return self.at(ref.visit * self.total + first + (ref.position - first + step) % size)

    def block_shards(self, first: int, last: int) -> tuple[list[int], int]:
        """The shards of the blocks that hold the samples from ``first`` up to ``last``.

        Returns:
            The shards in order, and the number of the first sample behind their blocks.
        """
        found: list[int] = []
        if last - first > 2 * self.total:  # two whole epochs and more: all of them
            first = last - 2 * self.total
        while first < last:
            epoch, position = divmod(first, self.total)
            found += self._shards_of(epoch, self._block_of(epoch, position)[0]).tolist()
            later = self._epoch(epoch)[1]
            later = later[later > position]
            first = epoch * self.total + int(later[0] if len(later) else self.total)
        return list(dict.fromkeys(found)), first

    def _block_of(self, epoch: int, position: int) -> tuple[int, int]:
        """The block that holds a position of an epoch, and the position where it starts."""
        starts = self._epoch(epoch)[1]
        block = int(np.searchsorted(starts, position, side="right")) - 1
        return block, int(starts[block])

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shuffled shards, and the position where each block starts (an empty block has none)."""
        shards = permutation(len(self._sizes), "shards", *self._key, epoch)
        ends = np.cumsum(self._sizes[shards])[BLOCK_SHARDS - 1 :: BLOCK_SHARDS]
        blocks = math.ceil(len(shards) / BLOCK_SHARDS)
        return shards, np.concatenate(([0], ends))[:blocks]

    def _make_block(self, epoch: int, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shuffled samples of a block, its shards, and where each shard ends among the samples."""
        shards = self._shards_of(epoch, block)
        ends = np.cumsum(self._sizes[shards])
        return permutation(int(ends[-1]), "block", *self._key, epoch, block), shards, ends

    def _shards_of(self, epoch: int, block: int) -> np.ndarray:
        return self._epoch(epoch)[0][block * BLOCK_SHARDS :][:BLOCK_SHARDS]


class Mixture:
    """The source of each draw, by Sainte-Laguë's divisor method on integer weights.

    Source s with weight w takes its k-th draw (from 0) at time (2k + 1) / 2w; draws are sorted by
    time, then by source.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        divisor = math.gcd(*weights)
        self.weights = [weight // divisor for weight in weights]
        self._all = sum(self.weights)

    def counts(self, draws: int) -> list[int]:
        """The number that each source has of the first ``draws``."""
        rounds, rest = divmod(draws, self._all)  # a whole round gives each source its weight
        counts = [(2 * rest * w + self._all) // (2 * self._all) for w in self.weights]
        while sum(counts) > rest:
            counts[max(self._at_least(counts, 1), key=lambda s: self._time(s, counts[s] - 1))] -= 1
        while sum(counts) < rest:
            counts[min(range(len(counts)), key=lambda s: self._time(s, counts[s]))] += 1
        return [count + rounds * w for count, w in zip(counts, self.weights, strict=True)]

    def take(self, counts: list[int]) -> int:
        """The source of the next draw after ``counts``; adds the draw to them."""
        alone = len(counts) == 1
        source = 0 if alone else min(range(len(counts)), key=lambda s: self._time(s, counts[s]))
        counts[source] += 1
        return source

    def _time(self, source: int, draw: int) -> "_Time":
        return _Time(2 * draw + 1, self.weights[source], source)

    @staticmethod
    def _at_least(counts: list[int], least: int) -> list[int]:
        return [s for s, count in enumerate(counts) if count >= least]


class _Time:
    """(odd / weight, source), compared exactly."""

    __slots__ = ("odd", "source", "weight")

    def __init__(self, odd: int, weight: int, source: int) -> None:
        self.odd, self.weight, self.source = odd, weight, source

    def __lt__(self, other: "_Time") -> bool:
        mine, theirs = self.odd * other.weight, other.odd * self.weight
        return mine < theirs or (mine == theirs and self.source < other.source)

    def __gt__(self, other: "_Time") -> bool:
        return other < self


class Schedule:
    """The samples of each step, and the share of each rank.

    Raises:
        ValueError: no source, an empty one, or a weight or batch that is not positive.
    """

    def __init__(self, sources: Sequence[SourceSizes], seed: int, global_batch: int) -> None:
        if not sources:
            raise ValueError("data: no source given; give at least one --data")
        for source in sources:
            if sum(source.sizes) < 1 or source.weight < 0:
                raise ValueError(
                    f"data {source.name}: {sum(source.sizes)} usable samples, weight "
                    f"{source.weight}; give a source with samples and a positive weight"
                )
        if global_batch < 1:
            raise ValueError(f"global batch {global_batch}: give at least 1")
        self.sources, self.seed, self.global_batch = tuple(sources), seed, global_batch
        self._orders = [SourceOrder(s.sizes, seed, i) for i, s in enumerate(sources)]
        self._mixture = Mixture([s.weight or sum(s.sizes) for s in sources])
        self.step = lru_cache(maxsize=4)(self._make_step)

    def _make_step(self, step: int) -> tuple[SampleRef, ...]:
        """The global batch of a step, in the order in which ranks cut it."""
        before = self._mixture.counts(step * self.global_batch)
        after = list(before)
        taken = [self._mixture.take(after) for _ in range(self.global_batch)]
        bounds = zip(self._orders, before, after, strict=True)
        runs = [order.run(first, last) for order, first, last in bounds]
        refs = [next(runs[source]) for source in taken]
        order = permutation(self.global_batch, "step", self.seed, step)
        return tuple(refs[number] for number in order.tolist())

    def rank_slice(self, step: int, rank: int, world: int) -> tuple[SampleRef, ...]:
        """Rank ``rank``'s consecutive share of a step's global batch.

        Raises:
            ValueError: ``world`` does not divide the global batch.
        """
        share, rest = divmod(self.global_batch, world)
        if rest:
            raise ValueError(
                f"global batch {self.global_batch} is not divisible by {world} ranks; "
                f"give --global-batch {share * world or world} or another number of ranks"
            )
        return self.step(step)[rank * share :][:share]

    def replacement(self, ref: SampleRef, attempt: int) -> SampleRef:
        """The substitute of an unreadable sample: the ``attempt``-th after it in its block."""
        return self._orders[ref.source].next_in_block(ref, attempt)

    def shards_near(self, step: int, ahead: int, stop: int) -> list[list[tuple[int, int]]]:
        """The shards to have at hand at a step, whatever the ranks: whole blocks of each source.

        Args:
            ahead: further steps whose samples are wanted too.
            stop: step at which the run ends.

        Returns:
            (source, shard) pairs in two groups: those of the blocks that these steps draw from,
            and those of the block that follows in each source, if the run comes to it.
        """
        first, last = self._drawn_together(step, min(step + ahead + 1, stop))
        befores, afters, ends = (
            self._mixture.counts(number * self.global_batch) for number in (first, last, stop)
        )
        now: list[tuple[int, int]] = []
        later: list[tuple[int, int]] = []
        for source, order in enumerate(self._orders):
            shards, behind = order.block_shards(befores[source], afters[source])
            now += [(source, shard) for shard in shards]
            if behind < ends[source]:
                following = order.block_shards(behind, behind + 1)[0]
                later += [(source, shard) for shard in following if shard not in shards]
        return [now, later]

    def _drawn_together(self, first: int, last: int) -> tuple[int, int]:
        """The steps whose samples the steps [first, last) are made of."""
        return first, last

    def fingerprint(self) -> str:
        """sha256 of everything that the order depends on, and of its first batch."""
        first = [(d.source, d.shard, d.index) for d in self.step(0)]
        what = [(s.name, s.sizes) for s in self.sources], self._mixture.weights
        text = json.dumps([what, self.seed, self.global_batch, BLOCK_SHARDS, first])
        return hashlib.sha256(text.encode()).hexdigest()


def permutation(size: int, *key: object) -> np.ndarray:
    """A permutation of ``range(size)``, int64, that depends on the key alone.

    Sorts the output of Philox, a counter-based generator whose stream NumPy guarantees.
    """
    text = "\x1f".join(str(part) for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    numbers = np.random.Philox(key=np.frombuffer(digest, dtype="<u8")).random_raw(size)
    return np.argsort(numbers, kind="stable")
