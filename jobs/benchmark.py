"""Benchmarks, each beside a peer and a ceiling in the same run, as ratios.

    python jobs/benchmark.py capfilt [--size full --device cuda ...]   CapFilt's models
    python jobs/benchmark.py overlap                                  CapFilt's stages on Ray
    python jobs/benchmark.py loader                                   the training loader
    python jobs/benchmark.py data                                     bookkeeping of 129M samples
    python jobs/benchmark.py train [--size full --device cuda ...]      training steps
    python jobs/benchmark.py scale                                    cost by batch, text and ranks
    python jobs/benchmark.py gpu [--page docs/measurements/gpu.md]    all of the above on a GPU
    python jobs/benchmark.py NAME --help

A table for people, and a last line of JSON for programs.
"""

import sys
from importlib import import_module
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.environment  # noqa: F401  a line, not a traceback, where packages are missing

from jobs.cli import run

BENCHMARKS = {
    "capfilt": "jobs.bench_capfilt",
    "overlap": "jobs.bench_overlap",
    "loader": "jobs.bench_loader",
    "data": "jobs.bench_data",
    "train": "jobs.bench_train",
    "scale": "jobs.bench_scale",
    "gpu": "jobs.benchmarks.gpu",
}


def main() -> int:
    """Run the benchmark that the first argument names.

    Raises:
        ValueError: no such benchmark; names those there are.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}")
    return import_module(BENCHMARKS[name]).main(sys.argv[2:])


if __name__ == "__main__":
    run(main)
