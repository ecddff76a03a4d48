"""Contenders of the loader's benchmark: raw reads, whole pipelines, decoding and resizing alone."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import webdataset
from torch.utils.data import DataLoader

from cluster.malloc import keep_memory
from jobs.benchmarks.loader_s3 import S3Bench
from pipeline.images import decode
from pipeline.loading.loader import Batches, LoaderConfig, Samples, make_schedule
from pipeline.shards.reading import Shards
from pipeline.transforms import TrainTransform, TransformConfig


@dataclass(frozen=True)
class LoaderBench:
    """Options of the loader's benchmark.

    Attributes:
        part: ``decode`` beside webdataset, ``draft`` decoding, shards from a slow ``s3``, or all.
        images: number of different images.
        shard: images in a shard.
        size: side in pixels of the images that the model would be shown.
        workers: processes of each contender.
        batch: samples in a batch.
        rounds: number of rounds; the contenders take turns, raw reads four times as often.
        s3: options of the part on S3.
    """

    part: Literal["all", "decode", "draft", "s3"] = "all"
    images: int = 1024
    shard: int = 128
    size: int = 224
    workers: int = 2
    batch: int = 32
    rounds: int = 7
    s3: S3Bench = field(default_factory=S3Bench)


@dataclass(frozen=True)
class Pace:
    """Rate of a contender.

    Attributes:
        speed: images a second.
        cpu: seconds of all processors for an image; 0 where they cannot be told.
    """

    speed: float
    cpu: float = 0.0


# ------------------------------------------------------------------------------- raw reads


def read_ours(source: Shards) -> Pace:
    """Read every sample's bytes in an order of training."""
    start, count = time.perf_counter(), sum(source.sizes)
    schedule = make_schedule([source], LoaderConfig(), seed=0, global_batch=count)
    for draw in schedule.rank_slice(0, 0, 1):
        source.members(draw.shard, draw.index)
    return Pace(count / (time.perf_counter() - start))


def read_webdataset(tars: list[str]) -> Pace:
    """Read the same with webdataset and its usual shuffle buffer."""
    start = time.perf_counter()
    count = sum(1 for _ in webdataset.WebDataset(tars, shardshuffle=False).shuffle(1000))
    return Pace(count / (time.perf_counter() - start))


# ------------------------------------------------------------------------------- pipelines


def train_ours(source: Shards, args: LoaderBench) -> Pace:
    """Make batches with our loader."""
    config = LoaderConfig(workers=args.workers)
    schedule = make_schedule([source], config, seed=0, global_batch=args.batch)
    samples = Samples([source], schedule, transform(args))
    with Batches(samples, config, range(2 * args.images)) as batches:
        return pace(batches, args)


def train_webdataset(tars: list[str], args: LoaderBench) -> Pace:
    """Make batches with webdataset's pipeline, our decoder and our transform."""
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
    """Keep freed memory, as our workers do."""
    keep_memory()


def from_webdataset(change: TrainTransform, sample: dict[str, Any]) -> tuple[torch.Tensor, str]:
    """A sample of webdataset in the form of ours."""
    image = change(decode(sample["jpg"]), torch.Generator().manual_seed(0))
    return image, sample["txt"].decode()


def stack(samples: list[tuple[torch.Tensor, str]]) -> tuple[torch.Tensor, list[str]]:
    """A batch of samples."""
    images, texts = zip(*samples, strict=True)
    return torch.stack(images), list(texts)


def pace(batches: Iterator[Any], args: LoaderBench) -> Pace:
    """The pace of an endless loader, once all its processes have made some batches.

    As many batches are in preparation when the clock stops as when it started, so that neither a
    first batch that is nearly ready nor a last one that is not finished distorts the pace.
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
    """Decode, crop and resize, and nothing else, in as many processes."""
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


def decode_files(encoded: list[bytes], args: LoaderBench, *, draft: bool) -> Pace:
    """Decode, crop and resize files in this process, perhaps in JPEG's draft mode."""
    change, generator = transform(args, draft=draft), torch.Generator().manual_seed(0)
    used = time.process_time()
    for image in encoded:
        change.of_file(image, generator)
    spent = (time.process_time() - used) / len(encoded)
    return Pace(1 / spent, spent)


def transform(args: LoaderBench, *, draft: bool = False) -> TrainTransform:
    """The paper's training transform."""
    return TrainTransform(TransformConfig(size=args.size, draft=draft))
