"""The whole CapFilt job: how much time its reading, decoding and writing add to its models'.

    python jobs/benchmark.py overlap --shards 6 --samples 200

The job runs on a local Ray over made-up photographs (JPEG, 500 x 375), with the shipped models and
one worker. Its commit records tell the seconds of each stage, and how much longer than the models'
own the wall clock is, from the end of the first shard on. Reading and writing run in tasks beside
the models, so as long as a core is free for them it should not be longer; only the first shard's
decoding and the last shard's writing show, once in a run.
"""

import io
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from cluster.ray.session import session
from cluster.storage.open import open_storage
from jobs import recipes
from jobs.benchmarks import measure as bench
from jobs.captioning.arguments import CapFiltArgs
from jobs.captioning.plan import plan_run, read_settings, to_do
from jobs.captioning.run import caption_shards, finish
from pipeline.shards.manifest import committed
from pipeline.sources.open import open_source

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class OverlapBench:
    """Options of the overlap benchmark.

    Attributes:
        shards: input tars.
        samples: photographs in each tar.
        captions: captions drawn for each photograph; with fewer the models are faster, and the
            other stages show more.
    """

    shards: int = 6
    samples: int = 200
    captions: int = 10


def main(arguments: Sequence[str]) -> int:
    """Make the photographs, run the job, report."""
    args = tyro.cli(OverlapBench, args=arguments, description=__doc__)
    recipe = recipes.recipe("capfilt", "tinyworld")
    recipe = replace(recipe, sampling=replace(recipe.sampling, captions=args.captions))
    with tempfile.TemporaryDirectory(prefix="bench-overlap-") as folder:
        web, out = Path(folder) / "web", Path(folder) / "out"
        write_photographs(web, args)
        job = CapFiltArgs(str(web), str(out), source="web", gallery=0, config=recipe)
        job = replace(job, ray=replace(job.ray, workers=1))
        whole = run_job(job)
        found = by_time(out)
    steady = found[-1][0] - found[0][0]
    spent = Counter[str]()
    for _, seconds in found[1:]:
        spent.update(seconds)
    rows = [["", "seconds", "of the wall clock"]]
    for name, value in [*sorted(spent.items()), ("wall clock", steady)]:
        rows.append([name, f"{value:.2f}", f"{value / steady:.1%}"])
    exposed = max(0.0, steady - spent["models"])
    rows.append(["beside the models", f"{exposed:.2f}", f"{exposed / steady:.1%}"])
    print(f"whole run: {whole:.1f} s; below, from the first shard's end to the last one's")
    bench.report(
        rows,
        {
            "benchmark": "overlap",
            **bench.machine("cpu"),
            **asdict(args),
            "images_per_s": round((args.shards - 1) * args.samples / steady, 2),
            "wall": round(steady, 2),
            "exposed": round(exposed, 2),
            "seconds": {name: round(value, 2) for name, value in sorted(spent.items())},
        },
    )
    return 0


def run_job(args: CapFiltArgs) -> float:
    """Make all shards, as jobs/capfilt.py does; returns the seconds of the whole run."""
    begun = time.perf_counter()
    source, storage = open_source(args.input, name=args.source), open_storage(args.output)
    settings = read_settings(args, source.name)
    with session(args.ray, ROOT) as resources:
        run = plan_run(args, source, storage, settings, resources)
        tally = caption_shards(run, to_do(run), resources)
    return finish(run, tally, begun).seconds


def by_time(out: Path) -> list[tuple[float, dict[str, float]]]:
    """Time of each shard's commit and its seconds by stage, in the order of the commits."""
    records = {commit.name: commit for commit in committed(str(out))}
    found = [
        (path.stat().st_mtime, records[path.name.removesuffix("_stats.json")].seconds)
        for path in (out / "shards").glob("*_stats.json")
    ]
    return sorted(found, key=lambda pair: pair[0])


def write_photographs(folder: Path, args: OverlapBench) -> None:
    """Write tars of smooth noise as JPEGs of about 40 kB, each with a caption."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for shard in range(args.shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as out:
            for number in range(args.samples):
                small = Image.fromarray(rng.integers(0, 256, (38, 50, 3), dtype=np.uint8))
                data = io.BytesIO()
                small.resize((500, 375), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
                for ext, member in (("jpg", data.getvalue()), ("txt", b"a photograph")):
                    info = tarfile.TarInfo(f"{shard:05d}{number:04d}.{ext}")
                    info.size = len(member)
                    out.addfile(info, io.BytesIO(member))
