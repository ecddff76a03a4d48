"""What the loader's benchmark runs: raw reads, whole pipelines, and decode + resize alone."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import webdataset
from torch.utils.data import DataLoader

from cluster.malloc import keep_memory
from pipeline.images import decode
from pipeline.loading.loader import Batches, LoaderConfig, Samples, make_schedule
from pipeline.shards.reading import Shards
from pipeline.transforms import TrainTransform, TransformConfig


@dataclass(frozen=True)
class LoaderBench:
    """What is measured.

    Attributes:
        images: how many different ones there are, in shards of ``shard``.
        size: side in pixels of what the model would see.
        workers: processes of each contender.
        batch: samples a batch.
        rounds: the contenders run in turns, this often; raw reads four times as often.
    """

    images: int = 1024
    shard: int = 128
    size: int = 224
    workers: int = 2
    batch: int = 32
    rounds: int = 7


@dataclass(frozen=True)
class Pace:
    """Images a second, and seconds of all processors an image (0 where they cannot be told)."""

    speed: float
    cpu: float = 0.0


# ------------------------------------------------------------------------------- raw reads


def read_ours(source: Shards) -> Pace:
    """Every sample's bytes in a training order."""
    start, count = time.perf_counter(), sum(source.sizes)
    schedule = make_schedule([source], LoaderConfig(), seed=0, global_batch=count)
    for draw in schedule.rank_slice(0, 0, 1):
        source.members(draw.shard, draw.index)
    return Pace(count / (time.perf_counter() - start))


def read_webdataset(tars: list[str]) -> Pace:
    """The same by the library, with its usual shuffle buffer."""
    start = time.perf_counter()
    count = sum(1 for _ in webdataset.WebDataset(tars, shardshuffle=False).shuffle(1000))
    return Pace(count / (time.perf_counter() - start))


# ------------------------------------------------------------------------------- pipelines


def train_ours(source: Shards, args: LoaderBench) -> Pace:
    """Our loader."""
    config = LoaderConfig(workers=args.workers)
    schedule = make_schedule([source], config, seed=0, global_batch=args.batch)
    samples = Samples([source], schedule, transform(args))
    with Batches(samples, config, range(2 * args.images)) as batches:
        return pace(batches, args)


def train_webdataset(tars: list[str], args: LoaderBench) -> Pace:
    """The library's pipeline with our decoder and transform."""
    dataset = (
        webdataset.WebDataset(tars, shardshuffle=False, nodesplitter=None)
        .repeat()
        .shuffle(1000)
        .map(partial(from_webdataset, transform(args)))
        .batched(args.batch, collation_fn=stack, partial=False)
    )
    loader = DataLoader(
        dataset, batch_size=None, num_workers=args.workers, prefetch_factor=4,
        worker_init_fn=start_worker,
    )  # fmt: skip
    return pace(iter(loader), args)


def start_worker(worker: int) -> None:
    """What is freed is kept, as in our workers."""
    keep_memory()


def from_webdataset(change: TrainTransform, sample: dict[str, Any]) -> tuple[torch.Tensor, str]:
    """A sample of the library as ours are."""
    image = change(decode(sample["jpg"]), torch.Generator().manual_seed(0))
    return image, sample["txt"].decode()


def stack(items: list[tuple[torch.Tensor, str]]) -> tuple[torch.Tensor, list[str]]:
    """A batch."""
    images, texts = zip(*items, strict=True)
    return torch.stack(images), list(texts)


def pace(batches: Iterator[Any], args: LoaderBench) -> Pace:
    """The pace of an endless loader, from when all its processes have made some batches.

    More batches are on their way when the clock stops, as many as when it started: neither a
    first batch that is nearly ready nor a last one that only one process works on counts.
    """
    for _ in range(8 * args.workers):
        next(batches)
    count = args.images // args.batch
    start, used = time.perf_counter(), cpu_seconds()
    for _ in range(count):
        next(batches)
    images = count * args.batch
    return Pace(images / (time.perf_counter() - start), (cpu_seconds() - used) / images)


def cpu_seconds() -> float:
    """Processor time of this process and those it has started, to 10 ms; 0 without /proc."""
    if not Path("/proc/self/stat").exists():
        return 0.0
    children = (child.pid for child in multiprocessing.active_children())
    return sum(_cpu_seconds(process) for process in (os.getpid(), *children))


def _cpu_seconds(process: int | None) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------------------------- ceiling


def decode_alone(encoded: list[bytes], args: LoaderBench) -> Pace:
    """Decode, crop and resize in as many processes, and nothing else."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    barrier = context.Barrier(args.workers)
    processes = [
        context.Process(target=_decode_part, args=(part, args, barrier, answers))
        for part in (encoded[i :: args.workers] for i in range(args.workers))
    ]
    for process in processes:
        process.start()
    paces = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return Pace(sum(p.speed for p in paces), statistics.mean(p.cpu for p in paces))


def _decode_part(part: list[bytes], args: LoaderBench, barrier: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    keep_memory()
    change, generator = transform(args), torch.Generator().manual_seed(0)
    for image in part[: args.batch]:
        change(decode(image), generator)
    barrier.wait()
    start, used = time.perf_counter(), time.process_time()
    for image in part:
        change(decode(image), generator)
    spent = time.perf_counter() - start
    answers.put(Pace(len(part) / spent, (time.process_time() - used) / len(part)))


def transform(args: LoaderBench) -> TrainTransform:
    """The paper's training transform."""
    return TrainTransform(TransformConfig(size=args.size))
