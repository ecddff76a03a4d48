"""The training loader beside webdataset's own pipeline and beside decode + resize alone.

    python jobs/benchmark.py loader                                # 2 processes, 224 px
    python jobs/benchmark.py loader --images 4096 --workers 8

All read the same samples: photographs-like JPEGs of 640 x 480 in WebDataset tars. The ceiling is
decode, crop and resize of bytes that are in memory already, in as many processes, with nothing
else. Decoder, transform and how memory is kept are the same for all. Raw reads are a sample's bytes
without decoding, in the order of training. The contenders run in turns, round after round, and
medians are compared, so that what else the machine does meets all alike; beside them stands the
processors' time an image, which other programs disturb least.
"""

import hashlib
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
from pipeline.images import decode, keep_memory
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


def main(arguments: Sequence[str]) -> int:
    """Make the shards, measure, report."""
    args = tyro.cli(LoaderBench, args=arguments, description=__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as folder:
        encoded = make_shards(Path(folder), args)
        source = open_shards(folder)
        tars = [str(path) for path in sorted((Path(folder) / "shards").glob("*.tar"))]
        reads = in_turns(
            {"ours": partial(read_ours, source), "webdataset": partial(read_webdataset, tars)},
            4 * args.rounds,
        )
        paces = in_turns(
            {
                "ours": partial(train_ours, source, args),
                "ceiling": partial(decode_alone, encoded, args),
                "webdataset": partial(train_webdataset, tars, args),
            },
            args.rounds,
        )
    report(args, reads, paces)
    return 0


def in_turns(work: dict[str, Callable[[], Pace]], rounds: int) -> dict[str, list[Pace]]:
    """Each contender once a round, one after the other."""
    found: dict[str, list[Pace]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            found[name].append(run())
    return found


def report(args: LoaderBench, reads: dict[str, list[Pace]], paces: dict[str, list[Pace]]) -> None:
    """Medians over the rounds, and how far the rounds' own ratios lie apart."""
    raw = {name: statistics.median(p.speed for p in found) for name, found in reads.items()}
    speed = {name: statistics.median(p.speed for p in found) for name, found in paces.items()}
    cpu = {name: statistics.median(p.cpu for p in found) for name, found in paces.items()}
    rows = [["", "images/s", "of ceiling", "CPU ms/image", "of ceiling", "raw reads/s"]]
    for name in ("ours", "webdataset", "ceiling"):
        reading = f"{raw[name]:,.0f}" if name in raw else ""
        used = (f"{1e3 * cpu[name]:.3f}", f"{cpu['ceiling'] / cpu[name]:.1%}") if cpu[name] else ""
        share = f"{speed[name] / speed['ceiling']:.1%}"
        rows.append([name, f"{speed[name]:.1f}", share, *(used or ("", "")), reading])
    share, ratio = speed["ours"] / speed["ceiling"], raw["ours"] / raw["webdataset"]
    shares = spread(paces["ours"], paces["ceiling"])
    ratios = spread(reads["ours"], reads["webdataset"])
    print(
        f"ours / ceiling: {share:.3f} (rounds {shares[0]:.3f} to {shares[1]:.3f}); "
        f"raw reads, ours / webdataset: {ratio:.1f} x (rounds {ratios[0]:.1f} to {ratios[1]:.1f})"
    )
    bench.report(
        rows,
        {
            "benchmark": "loader",
            **bench.machine("cpu"),
            **args.__dict__,
            "images_per_s": {name: round(value, 1) for name, value in speed.items()},
            "cpu_ms_per_image": {name: round(1e3 * value, 3) for name, value in cpu.items()},
            "raw_reads_per_s": {name: round(value) for name, value in raw.items()},
            "of_ceiling": round(share, 4),
            "of_ceiling_rounds": [round(value, 4) for value in shares],
            "raw_ratio": round(ratio, 2),
            "raw_ratio_rounds": [round(value, 2) for value in ratios],
        },
    )


def spread(ours: list[Pace], theirs: list[Pace]) -> tuple[float, float]:
    """The quartiles of the ratio of speeds in the same round."""
    ratios = [one.speed / other.speed for one, other in zip(ours, theirs, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return low, high


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
    """The pace of an endless loader, from when all its processes have made a batch.

    More batches are on their way when the clock stops, as many as when it started: neither a
    first batch that is nearly ready nor a last one that only one process works on counts.
    """
    for _ in range(2 * args.workers):
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
