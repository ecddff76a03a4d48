"""Batches for training: the samples of the schedule, read, decoded and tokenised ahead of the step.

``pipeline.loading.schedule`` orders the samples, ``pipeline.shards.reading`` has their bytes,
``pipeline.loading.samples`` decodes them, ``pipeline.loading.batch`` brings them to the process
that trains. A batch is a function of (data, seed, step, rank) alone: not of workers, of earlier
steps, or of where a run was resumed.
"""

import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cluster.malloc import keep_memory
from cluster.ranks.dist import this_process
from cluster.storage.cache import NodeCache, default_folder
from pipeline.loading.batch import Batch, BatchMessage, Slots, empty_squares
from pipeline.loading.fetcher import Fetcher
from pipeline.loading.grouping import GroupedSchedule
from pipeline.loading.samples import Samples
from pipeline.loading.schedule import SampleRef, Schedule, SourceSizes
from pipeline.shards.reading import Shards

Tokenise = Callable[[list[str]], dict[str, Tensor]]


@dataclass(frozen=True)
class LoaderConfig:
    """Reading and mixing of the training data.

    Attributes:
        captions: choice among a sample's kept captions at each visit: ``random_top2`` draws one of
            the best two (the paper), ``top1`` takes the best, ``weighted`` draws in proportion to
            the softmax of their scores.
        workers: processes of each rank that decode; 0 decodes in a thread beside the training step.
        prefetch: batches that are made ahead.
        weights: share of each source in the mix, an integer each in the order of ``--data``; none
            takes the sources' own, which for all but instruction tuning's is their size.
        cache: folder for this node's copies of remote shards; "" takes ``$ISTHMUS_CACHE`` or the
            user's cache folder.
        cache_gb: size in GiB that the cache may reach.
        fetch_ahead: steps ahead whose remote shards are fetched: the blocks of 16 shards that
            these steps draw from, and of each source the block behind them.
        fetch_streams: ranged reads at the same time of a shard that is fetched from S3.
        group: steps whose samples are sorted by length, so that each step's are of like length; 0:
            none. For conversations, whose lengths differ much.
    """

    captions: Literal["random_top2", "top1", "weighted"] = "random_top2"
    workers: int = 0
    prefetch: int = 4
    weights: tuple[int, ...] = ()
    cache: str = ""
    cache_gb: float = 200.0
    fetch_ahead: int = 50
    fetch_streams: int = 8
    group: int = 0

    def __post_init__(self) -> None:
        if self.group < 0:
            raise ValueError(f"loader.group = {self.group}: give 0 or more steps")
        if self.fetch_ahead < 0:
            raise ValueError(f"loader.fetch_ahead = {self.fetch_ahead}: give 0 or more steps")
        if self.fetch_streams < 1:
            raise ValueError(f"loader.fetch_streams = {self.fetch_streams}: give 1 or more")

    def node_cache(self) -> NodeCache:
        """The cache that these fields name."""
        folder = Path(self.cache) if self.cache else default_folder()
        return NodeCache(folder, self.cache_gb, self.fetch_streams)


def make_schedule(
    sources: Sequence[Shards], config: LoaderConfig, seed: int, global_batch: int
) -> Schedule:
    """The schedule over opened sources.

    Raises:
        ValueError: not as many weights as sources.
    """
    if config.weights and len(config.weights) != len(sources):
        raise ValueError(
            f"loader.weights = {config.weights}: {len(sources)} sources are given; "
            "give one positive integer each, or none"
        )
    weights = config.weights or [source.weight for source in sources]
    pairs = zip(sources, weights, strict=True)
    sizes = [SourceSizes(s.name, s.sizes, w) for s, w in pairs]
    if not config.group:
        return Schedule(sizes, seed, global_batch)
    lengths = [[s.lengths(shard) for shard in range(len(s.tars))] for s in sources]
    return GroupedSchedule(sizes, seed, global_batch, lengths, config.group)


class Batches:
    """This rank's batches from a step on: accumulation times a step, in order, made ahead.

    Iterate it once; ``close`` (or leaving a ``with`` block) ends its thread and processes.
    """

    def __init__(
        self,
        samples: Samples,
        config: LoaderConfig,
        steps: range,
        *,
        rank: int = 0,
        world: int = 1,
        accumulation: int = 1,
        tokenise: Tokenise | None = None,
    ) -> None:
        self._steps = steps
        order = _RankOrder(samples.schedule, steps, rank, world, accumulation)
        # In flight, ahead, of the step that trains and of the one before; more are made without.
        count = (config.workers + 1) * config.prefetch + 2 * accumulation + 2
        size = samples.transform.config.size
        slots = Slots(count if config.workers else 0, order.micro, size)
        loader: DataLoader = DataLoader(
            _BatchMaker(samples, slots, tokenise),
            batch_size=None,  # an index is a whole micro-batch
            sampler=_MicroBatchSampler(order, slots),
            collate_fn=_as_it_is,
            num_workers=config.workers,
            multiprocessing_context="fork" if config.workers else None,
            worker_init_fn=_start_worker,
            prefetch_factor=config.prefetch if config.workers else None,
            generator=torch.Generator(),  # it would draw from the global one otherwise
        )
        messages = iter(loader)
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._ahead = _Ahead(map(partial(_unpack, slots, device), messages), config.prefetch)
        self._accumulation, self._made = accumulation, 0
        self._fetcher = Fetcher(
            samples.sources,
            partial(samples.schedule.shards_near, ahead=config.fetch_ahead, stop=steps.stop),
            first=steps.start,
            turn=this_process().local_rank,
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self._ahead.next()
        self._made += 1
        self._fetcher.at(self._steps.start + self._made // self._accumulation)
        return batch

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop making batches."""
        self._fetcher.close()
        self._ahead.close()


def _unpack(slots: Slots, device: int | None, message: BatchMessage) -> Batch:
    """The batch of a message, page-locked where it goes to a GPU."""
    batch = message.batch(slots)
    if device is None:
        return batch
    with torch.cuda.device(device):
        return batch.pin_memory()


def _start_worker(worker: int) -> None:
    """A stop is sent to all processes of a run; the rank still needs its workers to end its step
    and save. They end with it.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    keep_memory()


def _as_it_is(message: Any) -> Any:
    return message


class _BatchMaker(Dataset):
    """The data set that runs in the workers; an index is a whole micro-batch to make."""

    def __init__(self, samples: Samples, slots: Slots, tokenise: Tokenise | None) -> None:
        self.samples, self.slots, self.tokenise = samples, slots, tokenise

    def __getitem__(self, wanted: tuple[int | None, list[SampleRef]]) -> BatchMessage:
        """Make the micro-batch of a (slot to fill, or None without a free one; samples)."""
        slot, refs = wanted
        if slot is None:
            squares = empty_squares(len(refs), self.samples.transform.config.size)
        else:
            squares = self.slots.squares(slot)
        samples = self.samples.fill(refs, squares)
        texts = [sample.text for sample in samples]
        tokens = self.tokenise(texts) if self.tokenise else {}
        return BatchMessage(
            squares=squares if slot is None else slot,
            texts=texts,
            uids=[sample.uid for sample in samples],
            image_ids=np.array([sample.image_id for sample in samples], dtype=np.int64),
            questions=[sample.question for sample in samples],
            draws=np.array([sample.draws for sample in samples], dtype=np.float64),
            tokens={name: tensor.numpy() for name, tensor in tokens.items()},
            replaced=[line for sample in samples for line in sample.replaced],
        )


class _MicroBatchSampler:
    """Sampler of whole micro-batches: takes a slot for each one when it is asked for."""

    def __init__(self, order: "_RankOrder", slots: Slots) -> None:
        self._order, self._slots = order, slots

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[int | None, list[SampleRef]]]:
        for refs in self._order:
            yield self._slots.take(), refs


class _RankOrder:
    """The samples of each micro-batch of one rank, step by step.

    Raises:
        ValueError: the global batch cannot be cut as asked.
    """

    def __init__(
        self, schedule: Schedule, steps: range, rank: int, world: int, accumulation: int
    ) -> None:
        self.schedule, self.steps = schedule, steps
        self.rank, self.world, self.accumulation = rank, world, accumulation
        share = len(schedule.rank_slice(0, rank, world))
        self.micro, rest = divmod(share, accumulation)
        if rest:
            raise ValueError(
                f"{share} samples a rank cannot be cut into {accumulation} equal micro-batches"
            )

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for step in self.steps:
            refs = self.schedule.rank_slice(step, self.rank, self.world)
            for start in range(0, len(refs), self.micro):
                yield list(refs[start : start + self.micro])


class _Ahead:
    """Runs an iterator in a thread, a few items ahead, and hands its errors on."""

    def __init__(self, source: Iterator[Any], depth: int) -> None:
        self._ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(max(1, depth))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source,), daemon=True)
        self._thread.start()

    def next(self) -> Any:
        item, error = self._ready.get()
        if error is not None:
            raise error
        return item

    def close(self) -> None:
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def _run(self, source: Iterator[Any]) -> None:
        error: BaseException = StopIteration()
        try:
            for item in source:
                if self._closed.is_set():
                    return
                self._ready.put((item, None))
        except Exception as raised:  # raised again where the batch is asked for
            error = raised
        self._ready.put((None, error))
