"""The training loader beside webdataset's own pipeline, and beside decoding and resizing alone.

    python jobs/benchmark.py loader                                # 2 processes, 224 px
    python jobs/benchmark.py loader --images 4096 --workers 8

All contenders read the same samples: JPEGs of 640 x 480 like photographs, in WebDataset tars. The
ceiling decodes, crops and resizes bytes that are in memory already, in as many processes, and does
nothing else. Decoder, transform and memory settings are the same for all. Raw reads fetch a
sample's bytes without decoding, in the order of training. The contenders take turns, round after
round, and medians are compared, so that other programs on the machine disturb all alike; beside
them stands the processors' time for an image, which other programs disturb least.
"""

import hashlib
import io
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

from cluster.storage.open import open_storage
from jobs.benchmarks import loader_contenders as cases
from jobs.benchmarks import measure as bench
from jobs.benchmarks.loader_contenders import LoaderBench, Pace
from pipeline.sample import make_uid
from pipeline.shards.manifest import commit_shard
from pipeline.shards.parquet import SampleRow, write_parquet
from pipeline.shards.reading import open_shards
from pipeline.shards.tar import write_tar

WIDTH, HEIGHT = 640, 480


def main(arguments: Sequence[str]) -> int:
    """Make the shards, measure, report."""
    args = tyro.cli(LoaderBench, args=arguments, description=__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as folder:
        encoded = make_shards(Path(folder), args)
        source = open_shards(folder)
        tars = [str(path) for path in sorted((Path(folder) / "shards").glob("*.tar"))]
        reads = in_turns(
            {
                "ours": partial(cases.read_ours, source),
                "webdataset": partial(cases.read_webdataset, tars),
            },
            4 * args.rounds,
        )
        paces = in_turns(
            {
                "ours": partial(cases.train_ours, source, args),
                "ceiling": partial(cases.decode_alone, encoded, args),
                "webdataset": partial(cases.train_webdataset, tars, args),
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
        told = cpu[name] > 0
        rows.append(
            [
                name,
                f"{speed[name]:.1f}",
                f"{speed[name] / speed['ceiling']:.1%}",
                f"{1e3 * cpu[name]:.3f}" if told else "",
                f"{cpu['ceiling'] / cpu[name]:.1%}" if told else "",
                reading,
            ]
        )
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
            SampleRow(
                make_uid("bench", name, key), key, "bench", "ok", offset=offset, length=length
            )
            for key, (offset, length) in zip(keys, spans, strict=True)
        ]
        counts = {"n": len(rows), "ok": len(rows), "filtered": 0, "failed": 0}
        stats = {**counts, "reasons": {}, "web_won": 0}
        commit_shard(storage, name, tar, write_parquet(rows), stats)
    return encoded


def picture(rng: np.random.Generator) -> bytes:
    """A JPEG with about the size and detail of a photograph."""
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.int16)
    image = image + rng.integers(-12, 13, (HEIGHT, WIDTH, 3), dtype=np.int16)
    out = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
    return out.getvalue()
