"""The training loader beside webdataset's own pipeline and beside decode + resize alone.

    python jobs/benchmark.py loader                                # 2 processes, 224 px
    python jobs/benchmark.py loader --images 4096 --workers 8

Both sides read the same shards: photographs-like JPEGs of 640 x 480 in WebDataset tars. The ceiling
is decode, crop and resize of bytes that are in memory already, in as many processes, with nothing
else. Raw reads are a sample's bytes without decoding, in the order of training.
"""

import hashlib
import io
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from cluster.storage import open_storage
from jobs import bench_common as bench
from pipeline.images import decode
from pipeline.loader import Batches, LoaderConfig, Samples, make_schedule
from pipeline.manifest import commit_shard
from pipeline.reading import Shards, open_shards
from pipeline.sample import make_uid
from pipeline.shards import Row, write_parquet, write_tar
from pipeline.transforms import TrainTransform, TransformConfig

WIDTH, HEIGHT = 640, 480


@dataclass(frozen=True)
class LoaderBench:
    """What is measured.

    Attributes:
        images: how many different ones there are, in shards of ``shard``.
        size: side in pixels of what the model would see.
        workers: processes of each contender.
        batch: samples a batch.
        rounds: the contenders run in turns, this often; the best round counts.
    """

    images: int = 1024
    shard: int = 128
    size: int = 224
    workers: int = 2
    batch: int = 32
    rounds: int = 3


def main(arguments: Sequence[str]) -> int:
    """Make the shards, measure, report."""
    args = tyro.cli(LoaderBench, args=arguments, description=__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as folder:
        encoded = make_shards(Path(folder), args)
        source = open_shards(folder)
        tars = [str(path) for path in sorted((Path(folder) / "shards").glob("*.tar"))]
        reads = bench.in_turns(
            {"ours": partial(read_ours, source), "webdataset": partial(read_webdataset, tars)},
            args.rounds, "cpu",
        )  # fmt: skip
        work: dict[str, Callable[[], Any]] = {
            "ours": partial(train_ours, source, args),
            "webdataset": partial(train_webdataset, tars, args),
            "ceiling": partial(decode_alone, encoded, args),
        }
        times: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(args.rounds):  # in turns, so that noise meets all alike
            for name, run in work.items():
                times[name].append(run())
    raw = {name: args.images / timed.best for name, timed in reads.items()}
    speed = {name: max(found) for name, found in times.items()}
    rows = [["", "images/s", "of ceiling", "raw reads/s"]]
    for name in ("ours", "webdataset", "ceiling"):
        reading = f"{raw[name]:,.0f}" if name in raw else ""
        rows.append([name, f"{speed[name]:.1f}", f"{speed[name] / speed['ceiling']:.1%}", reading])
    share, ratio = speed["ours"] / speed["ceiling"], raw["ours"] / raw["webdataset"]
    print(f"ours / ceiling: {share:.3f}; raw reads, ours / webdataset: {ratio:.1f} x")
    bench.report(
        rows,
        {
            "benchmark": "loader",
            **bench.machine("cpu"),
            **args.__dict__,
            "images_per_s": {name: round(value, 1) for name, value in speed.items()},
            "raw_reads_per_s": {name: round(value) for name, value in raw.items()},
            "of_ceiling": round(share, 4),
            "raw_ratio": round(ratio, 2),
        },
    )
    return 0


def make_shards(folder: Path, args: LoaderBench) -> list[bytes]:
    """A CapFilt output of smooth random pictures; returns their encoded bytes."""
    rng, storage = np.random.default_rng(0), open_storage(str(folder))
    encoded: list[bytes] = []
    for number, first in enumerate(range(0, args.images, args.shard)):
        name, members, keys = f"{number:08d}", [], []
        for i in range(first, min(first + args.shard, args.images)):
            key, image = f"{i:09d}", picture(rng)
            encoded.append(image)
            text = f"picture number {i}"
            caption = {"text": text, "score": 0.3, "origin": "web"}
            record = {"uid": make_uid("bench", name, key), "captions": [caption], "kept": [0]}
            record["sha256"] = hashlib.sha256(image).hexdigest()
            members.append(
                (key, {"jpg": image, "json": json.dumps(record).encode(), "txt": text.encode()})
            )
            keys.append(key)
        tar, spans = write_tar(members)
        rows = [
            Row(make_uid("bench", name, key), key, "bench", "ok", offset=offset, length=length)
            for key, (offset, length) in zip(keys, spans, strict=True)
        ]
        counts = {"n": len(rows), "ok": len(rows), "filtered": 0, "failed": 0}
        stats = {**counts, "reasons": {}, "web_won": 0}
        commit_shard(storage, name, tar, write_parquet(rows), stats)
    return encoded


def picture(rng: np.random.Generator) -> bytes:
    """A JPEG of about the size and detail of a photograph."""
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.int16)
    image = image + rng.integers(-12, 13, (HEIGHT, WIDTH, 3), dtype=np.int16)
    out = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
    return out.getvalue()


# ------------------------------------------------------------------------------- raw reads


def read_ours(source: Shards) -> None:
    """Every sample's bytes in a training order."""
    schedule = make_schedule([source], LoaderConfig(), seed=0, global_batch=sum(source.sizes))
    for draw in schedule.rank_slice(0, 0, 1):
        source.members(draw.shard, draw.index)


def read_webdataset(tars: list[str]) -> None:
    """The same by the library, with its usual shuffle buffer."""
    for _ in webdataset.WebDataset(tars, shardshuffle=False).shuffle(1000):
        pass


# ------------------------------------------------------------------------------- pipelines


def train_ours(source: Shards, args: LoaderBench) -> float:
    """Images a second of our loader, worker start left out."""
    config = LoaderConfig(workers=args.workers)
    schedule = make_schedule([source], config, seed=0, global_batch=args.batch)
    samples = Samples([source], schedule, transform(args))
    steps = range(args.images // args.batch)
    with Batches(samples, config, steps) as batches:
        return pace(iter(batches), len(steps), args.batch)


def train_webdataset(tars: list[str], args: LoaderBench) -> float:
    """Images a second of the library's pipeline with our decoder and transform."""
    dataset = (
        webdataset.WebDataset(tars, shardshuffle=False, nodesplitter=None)
        .shuffle(1000)
        .map(partial(from_webdataset, transform(args)))
        .batched(args.batch, collation_fn=stack, partial=False)
    )
    loader = DataLoader(dataset, batch_size=None, num_workers=args.workers, prefetch_factor=4)
    return pace(iter(loader), args.images // args.batch, args.batch)


def from_webdataset(change: TrainTransform, sample: dict[str, Any]) -> tuple[torch.Tensor, str]:
    """A sample of the library as ours are."""
    image = change(decode(sample["jpg"]), torch.Generator().manual_seed(0))
    return image, sample["txt"].decode()


def stack(items: list[tuple[torch.Tensor, str]]) -> tuple[torch.Tensor, list[str]]:
    """A batch."""
    images, texts = zip(*items, strict=True)
    return torch.stack(images), list(texts)


def pace(batches: Any, count: int, size: int) -> float:
    """Images a second from the second batch to the last: processes have started by then."""
    next(batches)
    start, seen = time.perf_counter(), 0
    for _ in batches:
        seen += 1
        if seen == count - 1:
            break
    return seen * size / (time.perf_counter() - start)


# ---------------------------------------------------------------------------------- ceiling


def decode_alone(encoded: list[bytes], args: LoaderBench) -> float:
    """Images a second of decode, crop and resize in as many processes, and nothing else."""
    parts = [encoded[i :: args.workers] for i in range(args.workers)]
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    barrier = context.Barrier(args.workers + 1)
    processes = [
        context.Process(target=_decode_part, args=(part, args, barrier, answers)) for part in parts
    ]
    for process in processes:
        process.start()
    barrier.wait()
    start = time.perf_counter()
    for _ in processes:
        answers.get()
    spent = time.perf_counter() - start
    for process in processes:
        process.join()
    return len(encoded) / spent


def _decode_part(part: list[bytes], args: LoaderBench, barrier: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    change, generator = transform(args), torch.Generator().manual_seed(0)
    barrier.wait()
    for image in part:
        change(decode(image), generator)
    answers.put(len(part))


def transform(args: LoaderBench) -> TrainTransform:
    """The paper's training transform."""
    return TrainTransform(TransformConfig(size=args.size))
