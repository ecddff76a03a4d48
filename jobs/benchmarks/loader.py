"""The training loader beside webdataset's own pipeline, and beside decoding and resizing alone.

    python jobs/benchmark.py loader                                # 2 processes, 224 px
    python jobs/benchmark.py loader --images 4096 --workers 8
    python jobs/benchmark.py loader --part draft                   # JPEGs decoded at a fraction
    python jobs/benchmark.py loader --part s3                      # shards from S3 over a slow link

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

from cluster.storage.open import open_storage
from jobs.benchmarks import loader_contenders as cases
from jobs.benchmarks import loader_s3
from jobs.benchmarks import measure as bench
from jobs.benchmarks.loader_contenders import LoaderBench, Pace
from pipeline.sample import make_uid
from pipeline.shards.manifest import commit_shard
from pipeline.shards.parquet import SampleRow, write_parquet
from pipeline.shards.reading import open_shards
from pipeline.shards.tar import write_tar

WIDTH, HEIGHT = 640, 480
SIZES = ((500, 375), (1280, 960), (1920, 1440))
DRAFTED = 16


def main(arguments: Sequence[str]) -> int:
    """Make the shards, measure, report."""
    args = tyro.cli(LoaderBench, args=arguments, description=__doc__)
    torch.set_num_threads(1)
    if args.part in ("all", "decode"):
        _decode(args)
    if args.part in ("all", "draft"):
        _draft(args)
    if args.part in ("all", "s3"):
        loader_s3.measure(args.s3)
    return 0


def _decode(args: LoaderBench) -> None:
    """Our loader, webdataset's, and decoding alone, in turns."""
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


def _draft(args: LoaderBench) -> None:
    """Files of three sizes with and without JPEG's draft mode, by the processor's time."""
    rng, rows, record = np.random.default_rng(0), [["", "whole", "draft", "gain"]], {}
    for width, height in SIZES:
        encoded = [picture(rng, width, height) for _ in range(DRAFTED)]
        work = {
            mode: partial(cases.decode_files, encoded, args, draft=mode == "draft")
            for mode in ("whole", "draft")
        }
        paces = in_turns(work, args.rounds)
        whole, draft = (statistics.median(p.speed for p in paces[mode]) for mode in work)
        name = f"{width} x {height}"
        rows.append([f"images/s a core, {name}", f"{whole:.0f}", f"{draft:.0f}",
                     f"{draft / whole:.2f} x"])  # fmt: skip
        record[name] = [round(whole, 1), round(draft, 1)]
    bench.report(rows, {"benchmark": "loader, draft", **bench.machine("cpu"), "images": record})


def in_turns(work: Mapping[str, Callable[[], Pace]], rounds: int) -> dict[str, list[Pace]]:
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
            **{name: value for name, value in asdict(args).items() if name != "s3"},
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


def picture(rng: np.random.Generator, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """A JPEG with about the size and detail of a photograph."""
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    image = image + rng.integers(-12, 13, (height, width, 3), dtype=np.int16)
    out = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
    return out.getvalue()
