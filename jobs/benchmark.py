"""Benchmarks: one part of the project beside a peer and a ceiling, measured in the same run.

    python jobs/benchmark.py train
    python jobs/benchmark.py train --size full --device cuda --dtype bf16 --batch 64
    python jobs/benchmark.py train --help               the options of one benchmark

A run prints a table for people, and a last line of JSON for programs.
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

from jobs.cli import run


@dataclass(frozen=True)
class Benchmark:
    """One line of the list that ``--help`` prints.

    Attributes:
        module: module whose ``main`` runs it.
        measures: subject, peer and ceiling.
        takes: duration with the default options on two CPU cores.
    """

    module: str
    measures: str
    takes: str


BENCHMARKS = {
    "capfilt": Benchmark(
        "jobs.benchmarks.capfilt",
        "CapFilt's captioner and scorer beside a plain Hugging Face loop",
        "2 minutes",
    ),
    "overlap": Benchmark(
        "jobs.benchmarks.overlap",
        "the CapFilt job on Ray: decoding and writing beside its models",
        "3 minutes",
    ),
    "loader": Benchmark(
        "jobs.benchmarks.loader",
        "the training loader beside webdataset, and decode and resize alone",
        "1 minute",
    ),
    "data": Benchmark(
        "jobs.benchmarks.data",
        "planning, resuming and ordering 129 million samples",
        "half a minute",
    ),
    "train": Benchmark(
        "jobs.benchmarks.train",
        "training steps beside the reference's algorithm and Hugging Face's BLIP-2",
        "10 minutes",
    ),
    "scale": Benchmark(
        "jobs.benchmarks.scale",
        "the cost of a stage-1 step by batch, text length and ranks",
        "5 minutes",
    ),
    "ranking": Benchmark(
        "jobs.benchmarks.ranking",
        "ranking candidate answers beside a forward pass for each candidate",
        "1 minute",
    ),
    "evaluate": Benchmark(
        "jobs.benchmarks.evaluate.run",
        "answers, captions and re-ranking beside Hugging Face's loop and pair by pair",
        "6 minutes",
    ),
    "search": Benchmark(
        "jobs.benchmarks.search",
        "an index over a million vectors beside the exact search",
        "5 minutes",
    ),
    "gpu": Benchmark(
        "jobs.benchmarks.gpu.run",
        "all of the above on a CUDA device, at full size, and the tests marked gpu",
        "9 minutes on a GPU",
    ),
}


def main() -> int:
    """Run the benchmark that the first argument names.

    Raises:
        ValueError: there is no such benchmark; the message names those there are.
    """
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}")
    return import_module(BENCHMARKS[name].module).main(arguments)


def usage() -> str:
    """The text of ``--help``: each benchmark, what it measures, and how long that takes."""
    lines = [f"  {name:9}{one.measures}; about {one.takes}" for name, one in BENCHMARKS.items()]
    heading = "Benchmarks, with durations for the default options on two CPU cores:"
    return "\n".join([str(__doc__), heading, "", *lines])


if __name__ == "__main__":
    run(main)
