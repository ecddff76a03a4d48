"""CapFilt: caption every image ten times, rank with the web caption, keep the best two.

    python jobs/capfilt.py --recipe tinyworld --input FOLDER --output FOLDER
    ray job submit --working-dir . -- python jobs/capfilt.py --recipe NAME --input URL --output URL

Input: a folder of tars (img2dataset, webdataset), a folder with captions.jsonl, or COCO JSON
(with --images). Output: WebDataset tars, a parquet row for every input, commit records, and
gallery.html to judge the filter by eye. Started again, it does what is not committed yet.
``plan``, ``verify``, ``stats``, ``compact`` and ``retry --reason R`` go in front of the options:
see jobs/capfilt_tools.py.
Fields of the recipe are overridden as ``--config.sampling.top-p 0.95``.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

import torch
import tyro
from tqdm import tqdm

from cluster.ray_map import (
    Parts,
    RayConfig,
    Resources,
    Stages,
    describe_cluster,
    map_shards,
    session,
)
from cluster.storage import Storage, absolute_url, open_storage
from jobs import capfilt_tools, recipes
from jobs.capfilt_models import Describer, find_folder, read_processor, revision
from jobs.capfilt_work import RETRY, Work
from jobs.cli import run
from jobs.recipes.capfilt import CapFiltRecipe
from modeling.captioner import REVISION
from pipeline.capfilt import Described, Kept, ModelInput, assemble, prepare
from pipeline.gallery import build_gallery
from pipeline.manifest import (
    Commit,
    Plan,
    PlannedShard,
    commit_shard,
    committed,
    committed_names,
    compact,
    open_plan,
)
from pipeline.sources import Source, open_source

ROOT = Path(__file__).resolve().parents[1]
_LIBRARIES = ("torch", "transformers", "tokenizers", "pillow", "numpy", "pyarrow")


@dataclass(frozen=True)
class CapFiltArgs:
    """What a run needs to know.

    Attributes:
        recipe: name of a CapFilt recipe.
        input: folder of tars, folder with captions.jsonl, .jsonl, .tar or COCO .json.
        output: folder for shards, records and the gallery.
        images: image folder of a .jsonl or COCO .json; default: beside it.
        source: the source's name in records and uids; default: from the input's name.
        gallery: how many images gallery.html shows; 0 writes none.
        ray: where it runs.
        config: the recipe's fields, to override.
    """

    input: str
    output: str
    recipe: str = "tinyworld"
    images: str | None = None
    source: str | None = None
    gallery: int = 60
    dry_run: bool = False
    ray: Annotated[RayConfig, tyro.conf.arg(name="")] = field(default_factory=RayConfig)
    config: CapFiltRecipe = field(default_factory=lambda: recipes.recipe("capfilt", "tinyworld"))


@dataclass(frozen=True)
class Summary(capfilt_tools.Counts):
    """What an output holds after a run, and how the run went.

    Attributes:
        done, skipped: shards of this run, shards that were committed before.
        images_per_s: of this run, wall time from the first shard's start; 0 if none ran.
    """

    done: int
    skipped: int
    seconds: float
    images_per_s: float
    output: str


def run_capfilt(args: CapFiltArgs) -> Summary:
    """Run CapFilt to the end, or resume it; see the module's docstring.

    Raises:
        ValueError: input, output, recipe or model that cannot be used; the message says why.
    """

    def uncommitted(storage: Storage, work: list[Work]) -> list[Work]:
        before = committed_names(storage)
        return [item for item in work if item.name not in before]

    return _run(args, uncommitted)


def retry_capfilt(args: CapFiltArgs, reasons: Sequence[str]) -> Summary:
    """Try inputs again that were dropped for one of the reasons, into shards of their own.

    Committed shards are never edited: ``00000123-retry01`` holds what became of the inputs.

    Raises:
        ValueError: as ``run_capfilt``; a reason nothing was dropped for; nothing committed yet.
    """

    def dropped(storage: Storage, work: list[Work]) -> list[Work]:
        _, commits = capfilt_tools.existing(args.output)
        rows = capfilt_tools.to_retry(storage, commits, frozenset(reasons))
        times = Counter(commit.retry_of for commit in commits)
        return [
            replace(item, name=f"{item.name}{RETRY}{times[item.name] + 1:02d}", again=tuple(again))
            for item in work
            if (again := rows.get(item.name))
        ]

    return _run(args, dropped)


def _run(args: CapFiltArgs, choose: Callable[[Storage, list[Work]], list[Work]]) -> Summary:
    begun = time.perf_counter()
    source = open_source(args.input, args.images, args.config.shard_size, args.source)
    storage = open_storage(args.output)
    settings = _settings(args.config, source.name)  # before Ray: a wrong path is known at once
    with session(args.ray, ROOT) as resources:
        work = _plan(args, source, storage, {**settings, "device": _device(args, resources)})
        todo = choose(storage, work)
        print(
            f"{len(work)} shards, {len(todo)} to do on {resources.actors} model workers "
            f"({resources.device}; {describe_cluster()})",
            flush=True,
        )
        start = time.perf_counter()
        images = _process(args, source, todo, resources) if todo else 0
        spent = time.perf_counter() - start
    commits = committed(args.output)
    compact(storage, commits)
    if args.gallery:
        storage.replace("gallery.html", build_gallery(storage, commits, args.gallery))
    return _summarise(commits, len(todo), images / spent, time.perf_counter() - begun, args.output)


def show_plan(args: CapFiltArgs) -> None:
    """Print what would run and how long it would take; nothing is written and nothing started.

    Raises:
        ValueError: input, recipe or model that cannot be used; the message says why.
    """
    source = open_source(args.input, args.images, args.config.shard_size, args.source)
    _settings(args.config, source.name)
    shards = source.shards()
    commits = committed(args.output)
    done = sum(not commit.retry_of for commit in commits)
    unit = "images" if shards and shards[0].items else "bytes"
    print(f"input   {args.input}: {len(shards):,} shards, {sum(s.size for s in shards):,} {unit}")
    print(f"output  {args.output}: {done:,} committed, {len(shards) - done:,} to do")
    print(capfilt_tools.estimate(commits, len(shards) - done, args.ray.workers or 1))


def _plan(
    args: CapFiltArgs, source: Source, storage: Storage, fingerprint: dict[str, Any]
) -> list[Work]:
    """Publish the plan, or check that the one that is there is ours."""
    shards = source.shards()
    if not shards:
        raise ValueError(f"input {args.input!r} is empty: no line, no image")
    work = [Work(f"{index:08d}", shard) for index, shard in enumerate(shards)]
    inputs = tuple(
        PlannedShard(item.name, item.shard.name, item.shard.size, item.shard.etag) for item in work
    )
    storage.sweep()
    open_plan(storage, Plan(fingerprint, inputs))
    return work


def _settings(recipe: CapFiltRecipe, source: str) -> dict[str, Any]:
    """What decides the bytes, besides the input and the device. Models count by content."""
    settings = asdict(recipe)
    if math.isinf(settings["filters"]["max_aspect"]):
        settings["filters"]["max_aspect"] = None  # JSON has no infinity
    for name in ("captioner", "ranker"):
        settings[name] = revision(find_folder(name, getattr(recipe, name)))
    libraries = {name: version(name) for name in _LIBRARIES}
    return {
        "recipe": settings, "source": source, "libraries": libraries, "captioner": REVISION
    }  # fmt: skip


def _device(args: CapFiltArgs, resources: Resources) -> str:
    """The device's name; on CPUs instructions and threads decide how sums are split."""
    if resources.device != "cpu":
        return resources.device
    return f"cpu {torch.backends.cpu.get_cpu_capability()}, {args.ray.threads} threads"


def _process(args: CapFiltArgs, source: Source, todo: Sequence[Work], resources: Resources) -> int:
    """Run the map with a progress bar; returns how many images went through."""
    recipe, images, failed = args.config, 0, Counter[str]()
    specs = [
        read_processor(find_folder(name, getattr(recipe, name))).spec
        for name in ("captioner", "ranker")
    ]
    stages = Stages(
        partial(_prepare, source.reader(), recipe, specs),
        partial(Describer, recipe),
        partial(_commit, absolute_url(args.output), recipe.keep),
        Parts(partial(_count, source.reader()), Work.only, Work.without),
    )
    sizes = [item.shard.size for item in todo]
    listed = all(item.shard.items for item in todo)
    with tqdm(
        total=sum(sizes) if listed else len(todo), unit="image" if listed else "shard",
        desc="capfilt", mininterval=1.0, smoothing=0.1, dynamic_ncols=True,
    ) as bar:  # fmt: skip

        def done(item: Work, stats: dict[str, Any]) -> None:
            nonlocal images
            images += stats["n"]
            failed.update(stats["reasons"])
            spent = max(time.time() - bar.start_t, 1e-9)
            bar.set_postfix(
                {"images/s": f"{images / spent:.1f}", "dropped": sum(failed.values())},
                refresh=False,
            )
            bar.update(item.shard.size if listed else 1)

        map_shards(todo, stages, args.ray, resources, done)
    return images


def _prepare(
    source: Source, recipe: CapFiltRecipe, specs: Sequence[Any], item: Work
) -> tuple[tuple[Work, Kept], ModelInput]:
    kept, model_input = prepare(item.records(source), recipe.filters, *specs)
    return (item, kept), model_input


def _count(source: Source, item: Work) -> int:
    return sum(1 for _ in source.read(item.shard))


def _commit(
    output: str, keep: int, worked: tuple[Work, Kept], described: Described
) -> dict[str, Any]:
    item, kept = worked
    shard = assemble(kept, described, keep)
    stats = {**shard.stats, **item.about()}
    commit_shard(open_storage(output), item.name, shard.tar, shard.parquet, stats)
    return stats


def _summarise(
    commits: Sequence[Commit], done: int, speed: float, seconds: float, output: str
) -> Summary:
    return Summary(
        **asdict(capfilt_tools.count(commits)),
        done=done,
        skipped=len(commits) - done,
        seconds=round(seconds, 2),
        images_per_s=round(speed, 2),
        output=output,
    )


def show(summary: Summary) -> None:
    """The table for people, and the last line for programs."""
    lines = [("images in", summary.images), ("kept", summary.kept)]
    lines += [(f"dropped: {reason}", count) for reason, count in summary.reasons.items()]
    share = summary.web_won / max(summary.kept, 1)
    print(f"\n{summary.done} shards done, {summary.skipped} skipped as committed before")
    for label, count in lines:
        print(f"  {label:<32}{count:>10,}")
    print(f"  {'web caption ranked first':<32}{summary.web_won:>10,}  ({share:.1%})")
    print(f"  {summary.images_per_s:.1f} images/s, {summary.seconds:.1f} s, in {summary.output}")
    print(json.dumps(asdict(summary), ensure_ascii=False), flush=True)


def parse(argv: Sequence[str]) -> CapFiltArgs:
    """Arguments with the named recipe's values as the defaults of ``--config.*``."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--recipe", default="tinyworld")
    name = early.parse_known_args(argv)[0].recipe
    config = recipes.recipe("capfilt", name)
    missing: Any = tyro.MISSING
    default = CapFiltArgs(input=missing, output=missing, recipe=name, config=config)
    return tyro.cli(CapFiltArgs, args=argv, default=default, description=__doc__)


def main() -> int:
    """Run, or the tool that the first argument names."""
    command, rest = sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:]
    if command in capfilt_tools.TOOLS:
        return capfilt_tools.main(sys.argv[1:])
    if command == "retry":
        reasons, rest = capfilt_tools.take_reasons(rest)
        show(retry_capfilt(parse(rest), reasons))
        return 0
    args = parse(rest if command in ("run", "plan") else sys.argv[1:])
    if command == "plan":
        show_plan(args)
    elif args.dry_run:
        print(json.dumps(asdict(args), indent=2, default=str))
    else:
        show(run_capfilt(args))
    return 0


if __name__ == "__main__":
    run(main)
