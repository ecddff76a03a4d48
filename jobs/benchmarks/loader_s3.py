"""Shards that come from S3 over a slow link: one rank and the ranks of a node, beside one stream.

Latency is that of S3; rates and shards are divided by ``scale``, so that two cores can play server,
link and node, and only shares of the link are reported. The link itself is measured too, by plain
reads of many connections. ``before`` is how shards were fetched until November 2026: each rank of a
node one after the other, all in the same order, by one stream.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cluster.storage.cache import NodeCache
from cluster.storage.open import open_storage
from jobs.benchmarks import measure as bench
from jobs.benchmarks.throttled_s3 import BUCKET, Link, s3_server, throttled
from pipeline.loading.fetcher import Fetcher
from pipeline.loading.loader import LoaderConfig, make_schedule
from pipeline.loading.schedule import BLOCK_SHARDS
from pipeline.sample import make_uid
from pipeline.shards.manifest import commit_shard
from pipeline.shards.parquet import SampleRow, write_parquet
from pipeline.shards.reading import open_shards
from pipeline.shards.tar import write_tar

URL = f"s3://{BUCKET}/data"
_SAMPLES = 8


@dataclass(frozen=True)
class S3Bench:
    """Options of the part on S3.

    Attributes:
        latency_ms: milliseconds before an answer begins.
        stream: MB/s of one stream.
        link: MB/s of all streams of the node together.
        scale: divisor of both rates and of the shards' size.
        shard_mb: MB of a shard.
        ranks: ranks of the node.
        streams: ranged reads of a shard at the same time.
        few: shards that one stream alone is measured on.
        rounds: number of rounds in which the contenders take turns.
    """

    latency_ms: float = 80.0
    stream: float = 80.0
    link: float = 800.0
    scale: float = 100.0
    shard_mb: float = 800.0
    ranks: int = 8
    streams: int = LoaderConfig().fetch_streams
    few: int = 2
    rounds: int = 3


def measure(args: S3Bench) -> None:
    """Make a block of shards, fetch them in all ways, report."""
    link = Link(args.latency_ms / 1e3, 1e6 * args.stream / args.scale, 1e6 * args.link / args.scale)
    with s3_server() as url:
        names = make_shards(args)
        with throttled(url, link):
            paces = {name: [run()] for name, run in _contenders(args, names).items()}
            for _ in range(args.rounds - 1):
                for name, run in _contenders(args, names).items():
                    paces[name].append(run())
    report(args, link, paces)


def _contenders(args: S3Bench, names: list[str]) -> dict[str, Callable[[], float]]:
    few = partial(fetch, args, shards=args.few, streams=1, shared=False)
    whole = partial(fetch, args, shards=BLOCK_SHARDS, streams=args.streams, shared=True)
    return {
        "plain reads": partial(read_plainly, args, names),
        f"{args.ranks} ranks": partial(whole, ranks=args.ranks),
        f"{args.ranks} ranks, before": partial(few, ranks=args.ranks),
        "one rank": partial(whole, ranks=1),
        "one rank, before": partial(few, ranks=1),
    }


def report(args: S3Bench, link: Link, paces: dict[str, list[float]]) -> None:
    """Medians over the rounds as shares of the link, and the gain over one stream."""
    share = {name: statistics.median(found) / link.total for name, found in paces.items()}
    rows = [["shards from S3", "of the link", "rounds", "gain"]]
    for name, found in paces.items():
        low, high = min(found) / link.total, max(found) / link.total
        before = share.get(f"{name}, before")
        gain = f"{share[name] / before:.1f} x" if before else ""
        rows.append([name, f"{share[name]:.1%}", f"{low:.1%} to {high:.1%}", gain])
    bench.report(
        rows,
        {
            "benchmark": "loader, shards from S3",
            **bench.machine("cpu"),
            **asdict(args),
            "of_link": {name: round(value, 4) for name, value in share.items()},
        },
    )


def make_shards(args: S3Bench) -> list[str]:
    """Commit a block of shards of random bytes; returns the names of the tars."""
    rng, storage = np.random.default_rng(0), open_storage(URL)
    size = int(1e6 * args.shard_mb / args.scale / _SAMPLES)
    names = []
    for number in range(BLOCK_SHARDS):
        name, keys = f"{number:08d}", [f"{i:09d}" for i in range(_SAMPLES)]
        tar, spans = write_tar([(key, {"jpg": rng.bytes(size)}) for key in keys])
        rows = [
            SampleRow(
                make_uid("bench", name, key), key, "bench", "ok", offset=offset, length=length
            )
            for key, (offset, length) in zip(keys, spans, strict=True)
        ]
        counts = {"n": len(rows), "ok": len(rows), "filtered": 0, "failed": 0}
        stats = {**counts, "reasons": {}, "web_won": 0}
        commit_shard(storage, name, tar, write_parquet(rows), stats)
        names.append(f"shards/{name}.tar")
    return names


# ----------------------------------------------------------------------------- contenders


def fetch(args: S3Bench, *, ranks: int, shards: int, streams: int, shared: bool) -> float:
    """Bytes a second at which so many shards reach all ranks of a node, which share a cache.

    Args:
        shared: with the loader's own fetcher; otherwise all ranks in the same order.
    """
    with tempfile.TemporaryDirectory(prefix="bench-cache-") as folder:
        cache = NodeCache(Path(folder), streams=streams)
        spent = _together(ranks, partial(_fetch_as_rank, cache, shards, shared))
        held = sum(path.stat().st_size for path in Path(folder).rglob("*.tar"))
    return held / spent


def _fetch_as_rank(cache: NodeCache, shards: int, shared: bool, rank: int, wait: Any) -> None:
    source = open_shards(URL, cache)
    schedule = make_schedule([source], LoaderConfig(), seed=0, global_batch=_SAMPLES)
    epoch = BLOCK_SHARDS
    wait()
    near = partial(schedule.shards_near, ahead=epoch - 1, stop=epoch)
    fetcher = Fetcher([source], near, turn=rank) if shared else None
    for _, shard in near(0)[0][:shards]:  # as the training does, which needs all of a block
        source.read(shard, 0)
    if fetcher is not None:
        fetcher.close()


def read_plainly(args: S3Bench, names: list[str]) -> float:
    """Bytes a second of many connections that read all shards and keep nothing: the link itself."""
    size = open_storage(URL).entries("shards")[1].size
    spent = _together(args.ranks, partial(_read_as_rank, names, size, args.ranks))
    return size * len(names) / spent


def _read_as_rank(names: list[str], size: int, ranks: int, rank: int, wait: Any) -> None:
    storage = open_storage(URL)
    storage.exists(names[0])  # make the client
    pieces = [(name, start) for name in names[rank::ranks] for start in range(0, size, size // 4)]
    wait()
    with ThreadPoolExecutor(len(pieces)) as readers:
        list(
            readers.map(
                lambda piece: len(storage.read_range(piece[0], piece[1], size // 4)), pieces
            )
        )


def _together(ranks: int, work: Callable[[int, Any], None]) -> float:
    """Seconds from the moment when all processes are ready to the end of the last one."""
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(ranks), context.SimpleQueue()
    processes = [
        context.Process(target=_as_process, args=(work, rank, barrier, answers))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    told = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return max(end for _, end in told) - min(start for start, _ in told)


def _as_process(work: Callable[[int, Any], None], rank: int, barrier: Any, answers: Any) -> None:
    started: list[float] = []

    def wait() -> None:
        barrier.wait()
        started.append(time.monotonic())

    try:
        work(rank, wait)
        answers.put((started[0], time.monotonic()))
    finally:
        barrier.abort() if not started else None
    os._exit(0)
