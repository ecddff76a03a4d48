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
    import jobs.environment  # noqa: F401  a line, not a traceback, where packages are missing

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

from cluster.ray.map import Parts, Stages, map_shards
from cluster.ray.session import RayConfig, Resources, describe_cluster, session
from cluster.storage.base import Storage, absolute_url, open_storage
from cluster.storage.cache import default_folder
from jobs import recipes
from jobs.captioning import tools
from jobs.captioning.duplicates import mark_duplicates
from jobs.captioning.models import Describer, read_processor, revision
from jobs.captioning.summary import Summary, Tally, show, summarise
from jobs.captioning.work import RETRY, Work
from jobs.cli import run
from jobs.models.files import find_folder
from jobs.recipes.capfilt import CapFiltRecipe
from modeling import linear
from modeling.captioning.captioner import REVISION
from modeling.linear import Library
from modeling.precision import chosen, multiplies_bf16
from pipeline.capfilt.describe import Described, Kept, ModelInput, prepare
from pipeline.capfilt.filters import FilterConfig
from pipeline.capfilt.gallery import build_gallery
from pipeline.capfilt.output import JsonLayout, assemble
from pipeline.shards.manifest import (
    PLAN,
    Commit,
    Plan,
    PlannedShard,
    commit_shard,
    committed,
    committed_names,
    compact,
    is_committed,
    open_plan,
)
from pipeline.sources.open import Source, open_source

ROOT = Path(__file__).resolve().parents[1]
_LIBRARIES = ("torch", "transformers", "tokenizers", "pillow", "numpy", "pyarrow")


@dataclass(frozen=True)
class CapFiltArgs:
    """What a run needs to know.

    Attributes:
        recipe: name of a CapFilt recipe.
        input: folder of tars, folder with captions.jsonl, .jsonl, .tar or .json of captions.
        output: folder for shards, records and the gallery.
        images: image folder of a .jsonl or .json; default: beside it.
        source: the source's name in records and uids; default: from the input's name. The names
            coco, vg, cc3m, cc12m, sbu and laion also say whether people wrote the captions.
        json_layout: of the tars' json members: the full record, or ``lavis``, the plain list of
            captions that the authors' reader of their own filtered LAION takes.
        gallery: how many images gallery.html shows; 0 writes none. It appears after the first
            shard and is complete at the end.
        ray: where it runs.
        config: the recipe's fields, to override.
    """

    input: str
    output: str
    recipe: str = "tinyworld"
    images: str | None = None
    source: str | None = None
    json_layout: JsonLayout = "full"
    gallery: int = 60
    dry_run: bool = False
    ray: Annotated[RayConfig, tyro.conf.arg(name="")] = field(default_factory=RayConfig)
    config: CapFiltRecipe = field(default_factory=lambda: recipes.recipe("capfilt", "tinyworld"))


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
        _, commits = tools.existing(args.output)
        rows = tools.to_retry(storage, commits, frozenset(reasons))
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
    _settings(args, source.name)  # before Ray: a wrong path is known at once
    with session(args.ray, ROOT) as resources:
        first = not storage.exists(PLAN)
        args, arithmetic = _settle(args, storage, resources)
        work = _plan(args, source, storage, {**_settings(args, source.name), **arithmetic})
        if args.config.filters.unique:
            work = mark_duplicates(work, source, args.config.filters, storage, args.ray)
        todo = choose(storage, work)
        if not first:  # another run may be at it from the front: meet it in the middle
            todo = todo[::-1]
        print(
            f"{len(work)} shards, {len(todo)} to do on {resources.actors} model workers "
            f"({resources.device}, {args.config.dtype}; {describe_cluster()})",
            flush=True,
        )
        start = time.perf_counter()
        products = arithmetic["products"]
        tally = _process(args, source, todo, resources, products) if todo else Tally()
        spent = time.perf_counter() - start
    commits = committed(args.output)
    compact(storage, commits)
    _write_gallery(args, commits)
    seconds = time.perf_counter() - begun
    return summarise(commits, tally, tally.images / spent, seconds, args.output)


def show_plan(args: CapFiltArgs) -> None:
    """Print what would run and how long it would take; nothing is written and nothing started.

    Raises:
        ValueError: input, recipe or model that cannot be used; the message says why.
    """
    source = open_source(args.input, args.images, args.config.shard_size, args.source)
    _settings(args, source.name)
    shards = source.shards()
    commits = committed(args.output)
    done = sum(not commit.retry_of for commit in commits)
    unit = "images" if shards and shards[0].items else "bytes"
    print(f"input   {args.input}: {len(shards):,} shards, {sum(s.size for s in shards):,} {unit}")
    print(f"output  {args.output}: {done:,} committed, {len(shards) - done:,} to do")
    print(tools.estimate(commits, len(shards) - done, args.ray.workers or 1))


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


def _settings(args: CapFiltArgs, source: str) -> dict[str, Any]:
    """What decides the bytes, besides the input and the device. Models count by content."""
    recipe, settings = args.config, asdict(args.config)
    if math.isinf(settings["filters"]["max_aspect"]):
        settings["filters"]["max_aspect"] = None  # JSON has no infinity
    for name in ("captioner", "ranker"):
        settings[name] = revision(find_folder(name, getattr(recipe, name), fetch=False))
    libraries = {name: version(name) for name in _LIBRARIES}
    return {
        "recipe": settings,
        "source": source,
        "json_layout": args.json_layout,
        "libraries": libraries,
        "captioner": REVISION,
    }


def _settle(
    args: CapFiltArgs, storage: Storage, resources: Resources
) -> tuple[CapFiltArgs, dict[str, Any]]:
    """The arguments with ``dtype`` settled, and what else of the arithmetic decides the bytes.

    An output that has a plan keeps what it began with; only a new one asks the device.
    """
    begun = json.loads(storage.read(PLAN))["fingerprint"] if storage.exists(PLAN) else {}
    on_cpu = resources.device == "cpu"
    dtype: Any = args.config.dtype
    products = begun.get("products")
    if dtype == "auto":
        dtype = begun.get("recipe", {}).get("dtype") or chosen(
            dtype, not on_cpu or multiplies_bf16("cpu")
        )
    if products is None:
        linear.CHOICES.keep_in(default_folder())
        products = linear.forward_library() if on_cpu else "torch"
    settled = replace(args, config=replace(args.config, dtype=dtype))
    return settled, {"device": _device(args, resources), "products": products}


def _device(args: CapFiltArgs, resources: Resources) -> str:
    """The device's name; on CPUs instructions and threads decide how sums are split."""
    if resources.device != "cpu":
        return resources.device
    return f"cpu {torch.backends.cpu.get_cpu_capability()}, {args.ray.threads} threads"


def _process(
    args: CapFiltArgs, source: Source, todo: Sequence[Work], resources: Resources, products: Library
) -> Tally:
    """Run the map with a progress bar; ``products`` makes the models' matrix products."""
    recipe, tally, output = args.config, Tally(), absolute_url(args.output)
    specs = [
        read_processor(find_folder(name, getattr(recipe, name), fetch=False)).spec
        for name in ("captioner", "ranker")
    ]
    stages = Stages(
        partial(_prepare, source.reader(), output, recipe.filters, specs),
        partial(Describer, recipe, products),
        partial(_commit, output, recipe.keep, args.json_layout),
        Parts(partial(_count, source.reader()), Work.only, Work.without),
    )
    listed = all(item.shard.items for item in todo)
    with tqdm(
        total=sum(item.shard.size for item in todo) if listed else len(todo),
        unit="image" if listed else "shard",
        desc="capfilt", mininterval=1.0, smoothing=0.1, dynamic_ncols=True,
    ) as bar:  # fmt: skip

        def done(item: Work, result: dict[str, Any]) -> None:
            tally.add(result)
            if tally.done == 1 and result["here"] and _write_gallery(args, committed(args.output)):
                bar.write(f"first captions to look at: {args.output}/gallery.html")
            speed = tally.images / max(time.time() - bar.start_t, 1e-9)
            dropped = tally.dropped.total()
            bar.set_postfix({"images/s": f"{speed:.1f}", "dropped": dropped}, refresh=False)
            bar.update(item.shard.size if listed else 1)

        map_shards(todo, stages, args.ray, resources, done)
    return tally


def _write_gallery(args: CapFiltArgs, commits: Sequence[Commit]) -> bool:
    """Write ``gallery.html`` over what is committed, where one is wanted."""
    if args.gallery:
        storage = open_storage(args.output)
        storage.replace("gallery.html", build_gallery([(storage, commits)], args.gallery))
    return args.gallery > 0


def _prepare(
    source: Source, output: str, filters: FilterConfig, specs: Sequence[Any], item: Work
) -> tuple[tuple[Work, Kept | None], ModelInput | None]:
    """The shard ready for the models; nothing where another run has committed it meanwhile."""
    if is_committed(open_storage(output), item.name):
        return (item, None), None
    kept, model_input = prepare(item.records(source), filters, *specs)
    return (item, kept), model_input


def _count(source: Source, item: Work) -> int:
    return sum(1 for _ in source.read(item.shard))


def _commit(
    output: str,
    keep: int,
    json_layout: JsonLayout,
    worked: tuple[Work, Kept | None],
    described: Described | None,
) -> dict[str, Any]:
    """Publish a shard; what it held, and whether it was published here."""
    item, kept = worked
    if kept is None or described is None:
        return {"here": False, "n": 0, "reasons": {}, "short": {}}
    shard = assemble(kept, described, keep, json_layout)
    stats = {**shard.stats, **item.about()}
    here = commit_shard(open_storage(output), item.name, shard.tar, shard.parquet, stats)
    return {"here": here, "n": stats["n"], "reasons": stats["reasons"], "short": described.short}


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
    if command in tools.TOOLS:
        return tools.main(sys.argv[1:])
    if command == "retry":
        reasons, rest = tools.take_reasons(rest)
        return show(retry_capfilt(parse(rest), reasons))
    args = parse(rest if command in ("run", "plan") else sys.argv[1:])
    if command == "plan":
        show_plan(args)
    elif args.dry_run:
        print(json.dumps(asdict(args), indent=2, default=str))
    else:
        return show(run_capfilt(args))
    return 0


if __name__ == "__main__":
    run(main)
