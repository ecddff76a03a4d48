"""The bookkeeping of 129 million samples: planning, resuming and ordering on synthetic records.

    python jobs/benchmark.py data                       # 13,160 shards of 10,000: the paper's 129M

Only what a real run reads is read: a listing and the commit records for CapFilt, shard sizes for
the order of training. Each part runs in a process of its own, which reports its seconds and its
largest memory.
"""

import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from cluster.storage.open import open_storage
from jobs.benchmarks import measure as bench
from pipeline.loading.loader import LoaderConfig
from pipeline.loading.schedule import Schedule, SourceSizes
from pipeline.shards.manifest import committed, committed_names, compact, manifest_hash
from pipeline.shards.plan import OutputPlan, PlannedShard, open_plan
from pipeline.text import to_json


@dataclass(frozen=True)
class DataBench:
    """Options of the bookkeeping benchmark.

    Attributes:
        shards: number of shards.
        samples: samples in a shard.
        batch: samples in a training step.
        step: step of the run whose batch is asked for.
    """

    shards: int = 13_160
    samples: int = 10_000
    batch: int = 1680
    step: int = 200_000


def main(arguments: Sequence[str]) -> int:
    """Make the records, measure, report."""
    args = tyro.cli(DataBench, args=arguments, description=__doc__)
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        write_records(Path(folder), args)
        parts: dict[str, Callable[..., dict[str, float]]] = {"resume": resume, "order": order}
        found = {name: in_process(part, folder, args) for name, part in parts.items()}
    rows = [["", "seconds", "largest memory, GB"]]
    for name, measured in found.items():
        memory = measured.pop("memory_gb")
        rows += [[f"{name}: {what}", f"{spent:.2f}", ""] for what, spent in measured.items()]
        rows.append([name, f"{sum(measured.values()):.2f}", f"{memory:.2f}"])
        measured["memory_gb"] = memory
    bench.report(rows, {"benchmark": "data", **bench.machine("cpu"), **asdict(args), **found})
    return 0


def write_records(folder: Path, args: DataBench) -> None:
    """Write a plan and all but one of its commit records, as an interrupted CapFilt leaves them."""
    (folder / "shards").mkdir()
    record = {
        "n": args.samples, "ok": args.samples - 100, "filtered": 60, "failed": 40,
        "reasons": {"too_small": 60, "not_an_image": 40}, "web_won": 300, "web_kept": 900,
        "tar_sha256": "0" * 64, "parquet_sha256": "1" * 64, "tar_bytes": 10**9,
        "seconds": {"prepare": 60.0, "caption": 300.0, "score": 40.0, "models": 340.0},
    }  # fmt: skip
    for number in range(args.shards - 1):
        name = f"{number:08d}"
        path = folder / "shards" / f"{name}_stats.json"
        path.write_bytes(to_json({**record, "name": name}))
    open_plan(open_storage(str(folder)), plan(args))


def plan(args: DataBench) -> OutputPlan:
    """The run's plan."""
    inputs = tuple(
        PlannedShard(f"{number:08d}", f"{number:05d}.tar", 10**9, "0" * 32)
        for number in range(args.shards)
    )
    return OutputPlan({"recipe": "synthetic"}, inputs)


def resume(folder: str, args: DataBench) -> dict[str, float]:
    """Seconds of a driver's work before its first shard and after its last."""
    storage = open_storage(folder)
    found: dict[str, float] = {}
    with _Clock(found, "check the plan"):
        open_plan(storage, plan(args))
    with _Clock(found, "list what is done"):
        left = args.shards - len(committed_names(storage))
    assert left == 1
    with _Clock(found, "read all records, write the manifest"):
        commits = committed(folder)
        manifest_hash(commits)
        compact(storage, commits)
    return found


def order(folder: str, args: DataBench) -> dict[str, float]:
    """Seconds of ordering the samples of a first batch, and of one far into the run."""
    found: dict[str, float] = {}
    with _Clock(found, "start, first batch"):
        sizes = tuple(args.samples for _ in range(args.shards))
        config = LoaderConfig()
        schedule = Schedule(
            [SourceSizes("synthetic", sizes, 0)], seed=len(config.weights), global_batch=args.batch
        )
        assert len(schedule.rank_slice(0, 0, 1)) == args.batch
    with _Clock(found, f"batch of step {args.step:,}"):
        assert len(schedule.rank_slice(args.step, 0, 1)) == args.batch
    return found


class _Clock:
    def __init__(self, found: dict[str, float], name: str) -> None:
        self.found, self.name = found, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.found[self.name] = round(time.perf_counter() - self.start, 3)


def in_process(part: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Run a part in a new process; its seconds, and its largest memory."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_measured, args=(theirs, part, arguments))
    process.start()
    found = json.loads(mine.recv())
    process.join()
    return found


def _measured(answer: Any, part: Callable[..., dict[str, float]], arguments: Any) -> None:
    found = part(*arguments)
    found["memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    answer.send(json.dumps(found))
