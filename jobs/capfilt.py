"""CapFilt: caption every image ten times, rank with the web caption, keep the best two.

    python jobs/capfilt.py --recipe tinyworld --input FOLDER --output FOLDER
    ray job submit --working-dir . -- python jobs/capfilt.py --recipe NAME --input URL --output URL

Input: a folder of tars (img2dataset, webdataset), a folder with captions.jsonl, or the JSON of COCO
or Visual Genome (with --images). Output: WebDataset tars, a parquet row for every input, commit
records, and gallery.html to judge the filter by eye. Started again, it does what is not committed
yet; several runs on one output share the work.
``plan``, ``verify``, ``stats``, ``compact``, ``gallery`` and ``retry --reason R`` go in front of
the options: see jobs/captioning/tools.py.
Fields of the recipe are overridden as ``--config.sampling.top-p 0.95``.
Exit codes: 0; 2 for a mistake, told in one line; 3 where every input was dropped.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

import json
import time
from collections.abc import Sequence
from dataclasses import asdict

from cluster.ray.session import describe_cluster, session
from cluster.storage.open import open_storage
from jobs import cli
from jobs.captioning.arguments import CapFiltArgs, parse
from jobs.captioning.plan import on_device_of_plan, plan_run, read_settings, show_plan, to_do
from jobs.captioning.retry import take_reasons
from jobs.captioning.run import caption_shards, finish
from jobs.captioning.summary import Summary, show
from jobs.captioning.tools import TOOLS
from pipeline.sources.open import open_source

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run CapFilt, or the command that the first argument names; returns the exit code."""
    command, options = sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:]
    if command in TOOLS:
        return TOOLS[command](options)
    reasons: list[str] = []
    if command == "retry":
        reasons, options = take_reasons(options)
    elif command not in ("run", "plan"):
        options = sys.argv[1:]
    args = parse(options, __doc__)
    if command == "plan":
        show_plan(args)
        return 0
    if args.dry_run:
        print(json.dumps(asdict(args), indent=2, default=str))
        return 0
    return show(run_capfilt(args, reasons))


def run_capfilt(args: CapFiltArgs, reasons: Sequence[str] = ()) -> Summary:
    """Run CapFilt to the end, or go on where earlier runs stopped.

    Args:
        reasons: where given, only inputs dropped for one of them are tried again, into new shards.

    Raises:
        ValueError: input, output, recipe, model or reason that cannot be used; says why.
    """
    begun = time.perf_counter()
    source = open_source(args.input, args.images, args.config.shard_size, args.source)
    storage = open_storage(args.output)
    args = on_device_of_plan(args, storage)
    settings = read_settings(args, source.name)  # before Ray: a wrong path is known at once
    with session(args.ray, ROOT) as resources:
        run = plan_run(args, source, storage, settings, resources)
        todo = to_do(run, reasons)
        print(
            f"{len(run.work)} shards, {len(todo)} to do on {resources.actors} model workers "
            f"({resources.device}, {run.args.config.dtype}; {describe_cluster()})",
            flush=True,
        )
        tally = caption_shards(run, todo, resources)  # prepare, describe, commit
    return finish(run, tally, begun)


if __name__ == "__main__":
    cli.run(main)
