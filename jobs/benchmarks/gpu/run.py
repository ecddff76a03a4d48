"""One command that measures a CUDA device: tests, training, CapFilt, and Hugging Face's modules.

    python jobs/benchmark.py gpu                          # full size, at most nine minutes
    python jobs/benchmark.py gpu --parts stage1,capfilt
    python jobs/benchmark.py gpu --page docs/measurements/gpu.md
    python jobs/benchmark.py gpu --size tiny              # the same flow on a CPU

The parts, in their order: a large product and a large copy (`ceiling`), the tests that are marked
gpu (`tests`), stage 1 with ViT-g and stage 2 with OPT-2.7B, FlanT5-XL and FlanT5-XXL by the
project's own loop and engine (`stage1`, `opt-2.7b`, `flan-t5-xl`, `flan-t5-xxl`), CapFilt's models
(`capfilt`), and ours beside Hugging Face's modules (`vit-g`, `q-former`). Models have random
weights that are made on the device; nothing is read from a network.

Each part is a process of its own, and its record is in OUT/gpu.jsonl as soon as it ends: a run that
is killed leaves what it has, and the same command goes on with the parts that lack. A part that
fails, that needs more memory than there is, or for which no time is left is a record that says so.
"""

import ctypes
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from jobs.benchmarks.gpu import rows
from jobs.benchmarks.gpu.suite import run_tests

ROOT = Path(__file__).resolve().parents[2]
SECONDS = {
    "ceiling": 5,
    "tests": 150,
    "stage1": 35,
    "vit-g": 15,
    "q-former": 20,
    "capfilt": 20,
    "flan-t5-xxl": 40,
    "opt-2.7b": 25,
    "flan-t5-xl": 30,
}
"""The parts in their order, and about how long each takes on an H200."""
LONGEST = 3.0
"""A part may take this many times as long as is expected of it."""
PEAK_OF_CPU = 1e10  # where no product was measured


@dataclass(frozen=True)
class GpuBench:
    """What is measured.

    Attributes:
        size: ``full`` is the paper's models; ``tiny`` runs the same flow on a CPU in seconds.
        parts: some of them, separated by commas; ``all`` is every one.
        out: folder of the results. Parts that are already there, of the same size and commit, are
            not measured again.
        minutes: time from the start after which no part is begun.
        batch: samples of a training step; 0 takes one rank's share of 16 of the recipe's batch.
        commit: what the rows are said to be of; by default the clone's.
        page: a Markdown file that gets the rows as well.
    """

    size: Literal["full", "tiny"] = "full"
    parts: str = "all"
    out: Path = Path("runs/gpu")
    minutes: float = 9.0
    batch: int = 0
    commit: str = ""
    page: Path | None = None


def main(arguments: Sequence[str]) -> int:
    """Measure the parts that lack, then report all that there is."""
    args = tyro.cli(GpuBench, args=arguments, description=__doc__)
    args = replace(args, commit=args.commit or commit_here())
    asked = part_names(args.parts)
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / rows.RECORDS
    # A forked part may not use CUDA after its parent did: the parent only asks the driver's list.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import deepspeed  # noqa: F401  the slowest import, once for all parts

    from jobs.benchmarks.gpu import parts, peers  # noqa: F401

    begun, budget = time.monotonic(), 60 * args.minutes
    lacking = [name for name in asked if name not in rows.done(kept, args.size, args.commit)]
    for number, name in enumerate(lacking):
        left = max(0.0, budget - (time.monotonic() - begun))
        expected = 5 if args.size == "tiny" else SECONDS[name]
        rest = sum(5 if args.size == "tiny" else SECONDS[later] for later in lacking[number:])
        print(
            f"part {number + 1} of {len(lacking)}: {name}; about {expected} s, all that lack about "
            f"{rest} s, {left:.0f} s are left",
            flush=True,
        )
        if left < expected:
            why = (
                f"time: about {expected} s are needed, {left:.0f} are left of {args.minutes:g} min"
            )
            rows.append(kept, head(args, name) | {"status": "left out", "why": why})
        else:
            run_part(args, name, min(left, LONGEST * expected + 30))
        rows.write_page(args.out / rows.PAGE, kept)
    if args.page:
        rows.add_to_page(args.page, kept)
    print(rows.page(rows.read(kept)))
    return 1 if any(record["status"] == "failed" for record in rows.read(kept)) else 0


def part_names(asked: str) -> list[str]:
    """The parts asked for, in their order; the ceiling is what the others are told in shares of.

    Raises:
        ValueError: one that there is not.
    """
    names = list(SECONDS) if asked == "all" else asked.split(",")
    for name in names:
        if name not in SECONDS:
            raise ValueError(f"--parts {name!r}: give all, or some of {', '.join(SECONDS)}")
    return [name for name in SECONDS if name in {"ceiling", *names}]


def commit_here() -> str:
    """The clone's commit, with a mark where files differ from it; empty outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=10"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def head(args: GpuBench, name: str) -> dict[str, Any]:
    """What every record begins with: which part, of what, when and on what."""
    return {
        "part": name,
        "size": args.size,
        "commit": args.commit,
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python jobs/benchmark.py gpu --size {args.size} --parts {name}"
        + (f" --batch {args.batch}" if args.batch else ""),
    }


def run_part(args: GpuBench, name: str, limit: float) -> None:
    """Measure a part in a process of its own, which writes its record itself.

    Args:
        limit: seconds after which it is ended, and its record says so.
    """
    kept, begun = args.out / rows.RECORDS, time.monotonic()
    if name == "tests":
        rows.append(kept, head(args, name) | run_tests(args.out, limit) | place())
        return
    child = multiprocessing.get_context("fork").Process(target=_measure, args=(args, name))
    child.start()
    child.join(limit)
    if child.is_alive():
        child.kill()
        child.join()
        why = f"it was ended after {limit:.0f} s"
        rows.append(kept, head(args, name) | {"status": "failed", "why": why})
    elif child.exitcode:
        why = f"its process ended with code {child.exitcode}"
        rows.append(kept, head(args, name) | {"status": "failed", "why": why})
    print(f"  {name}: {time.monotonic() - begun:.0f} s", flush=True)


def _measure(args: GpuBench, name: str) -> None:
    """In the child: measure, and write the record, whatever happens."""
    from jobs.benchmarks.gpu.parts import LeftOut

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with its parent
    record, begun = head(args, name), time.perf_counter()
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cuda":
            torch.cuda.set_device(0)
        record |= place() | measure(args, name, device) | {"status": "done"}
    except LeftOut as short:
        record |= {"status": "left out", "why": str(short)}
    except torch.OutOfMemoryError as short:
        record |= {"status": "left out", "why": "memory: " + str(short).partition(". ")[0]}
    except Exception as error:  # the other parts go on, and this one's record has the place
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        why = f"{type(error).__name__}: {str(error)[:400]} ({where})"
        record |= {"status": "failed", "why": why}
        traceback.print_exc()
    record["seconds"] = round(time.perf_counter() - begun, 1)
    rows.append(args.out / rows.RECORDS, record)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # an ordinary exit may end in the libraries' threads


def measure(args: GpuBench, name: str, device: torch.device) -> dict[str, Any]:
    """One part's numbers."""
    from jobs.benchmarks.gpu import parts, peers

    if name == "ceiling":
        return parts.ceiling(args, device)
    peak = rows.measured_peak(args.out / rows.RECORDS, args.size) or PEAK_OF_CPU
    if name == "vit-g":
        return peers.vit_beside_huggingface(args, device, peak)
    if name == "q-former":
        return peers.qformer_beside_huggingface(args, device, peak)
    if name == "capfilt":
        return parts.capfilt(args, device, peak)
    return parts.training(args, device, name, peak)


def place() -> dict[str, Any]:
    """On what a record was measured."""
    if torch.cuda.is_available():
        card: str = torch.cuda.get_device_properties(0).name
    else:
        card = f"CPU, {platform.machine()}"
    import deepspeed
    import transformers

    return {
        "device": card,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "deepspeed": deepspeed.__version__,
    }
