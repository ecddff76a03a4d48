"""The plan of a CapFilt run: its fingerprint, its output shards, and which of them are to do.

Everything that decides the bytes of an output is settled here, before any shard is made, and
published as ``plan.json``. A later run on the same output must bring the same plan.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import torch

from cluster.ray.session import Resources
from cluster.storage.base import Storage
from cluster.storage.cache import default_folder
from jobs.captioning.arguments import CapFiltArgs
from jobs.captioning.duplicates import mark_duplicates
from jobs.captioning.models import model_folder, revision
from jobs.captioning.retry import retry_work
from jobs.captioning.work import Work
from modeling import linear
from modeling.captioning.captioner import REVISION
from modeling.linear import Library
from modeling.precision import chosen, multiplies_bf16
from pipeline.shards.manifest import Commit, committed, committed_names
from pipeline.shards.plan import PLAN, OutputPlan, PlannedShard, open_plan
from pipeline.sources.open import Source, open_source

_LIBRARIES = ("torch", "transformers", "tokenizers", "pillow", "numpy", "pyarrow")


@dataclass(frozen=True)
class PlannedRun:
    """A run whose plan is published.

    Attributes:
        args: the options; ``config.dtype`` is settled.
        source: the input.
        storage: the output.
        work: every output shard of the plan, in its order.
        products: library of the models' matrix products.
        resumed: True where the output had its plan before this run.
    """

    args: CapFiltArgs
    source: Source
    storage: Storage
    work: list[Work]
    products: Library
    resumed: bool


def read_settings(args: CapFiltArgs, source: str) -> dict[str, Any]:
    """The part of the fingerprint that is known before the device is.

    Args:
        source: the source's name.

    Returns:
        Recipe, source, layout and library versions; models count by their content.

    Raises:
        ValueError: there is no model in a folder of the recipe.
    """
    recipe = asdict(args.config)
    if math.isinf(recipe["filters"]["max_aspect"]):
        recipe["filters"]["max_aspect"] = None  # JSON has no infinity
    for name in ("captioner", "ranker"):
        recipe[name] = revision(model_folder(name, getattr(args.config, name)))
    return {
        "recipe": recipe,
        "source": source,
        "json_layout": args.json_layout,
        "libraries": {name: version(name) for name in _LIBRARIES},
        "captioner": REVISION,
    }


def plan_run(
    args: CapFiltArgs,
    source: Source,
    storage: Storage,
    settings: dict[str, Any],
    resources: Resources,
) -> PlannedRun:
    """Settle the arithmetic and publish the plan, or check that the one that is there is ours.

    With ``filters.unique`` it also finds the duplicates over all shards; needs a connected Ray.

    Args:
        settings: result of ``read_settings``.

    Raises:
        ValueError: the input is empty, or the output belongs to another plan.
    """
    resumed = storage.exists(PLAN)
    dtype, products = _settle_arithmetic(args, storage, resources)
    args = replace(args, config=replace(args.config, dtype=dtype))
    shards = source.shards()
    if not shards:
        raise ValueError(f"input {args.input!r} is empty: no line, no image")
    work = [Work(f"{index:08d}", shard) for index, shard in enumerate(shards)]
    fingerprint = {
        **settings,
        "recipe": {**settings["recipe"], "dtype": dtype},
        "device": _device_name(args, resources),
        "products": products,
    }
    inputs = tuple(
        PlannedShard(item.name, item.shard.name, item.shard.size, item.shard.etag) for item in work
    )
    storage.sweep()
    open_plan(storage, OutputPlan(fingerprint, inputs))
    if args.config.filters.unique:
        work = mark_duplicates(work, source, args.config.filters, storage, args.ray)
    return PlannedRun(args, source, storage, work, products, resumed)


def on_device_of_plan(args: CapFiltArgs, storage: Storage) -> CapFiltArgs:
    """The options with the device that the output began on in place of ``--device auto``."""
    if args.ray.device != "auto" or not storage.exists(PLAN):
        return args
    begun: str = json.loads(storage.read(PLAN))["fingerprint"].get("device", "cpu")
    device: Any = "cpu" if begun.startswith("cpu") else "gpu"
    return replace(args, ray=replace(args.ray, device=device))


def _settle_arithmetic(
    args: CapFiltArgs, storage: Storage, resources: Resources
) -> tuple[Any, Library]:
    """The weights' number format, and the library of matrix products.

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
    return dtype, products


def _device_name(args: CapFiltArgs, resources: Resources) -> str:
    """The device's name; on CPUs instructions and threads decide how sums are split."""
    if resources.device != "cpu":
        return resources.device
    return f"cpu {torch.backends.cpu.get_cpu_capability()}, {args.ray.threads} threads"


def to_do(run: PlannedRun, reasons: Sequence[str] = ()) -> list[Work]:
    """The shards that a run makes, in the order in which it begins them.

    Args:
        reasons: empty for every shard without a commit record; else the reasons of a retry.

    Raises:
        ValueError: a retry of an output in which nothing was dropped for one of the reasons.
    """
    if reasons:
        todo = retry_work(run.work, run.args.output, reasons)
    else:
        before = committed_names(run.storage)
        todo = [item for item in run.work if item.name not in before]
    # Another run may be at it from the front: meet it in the middle.
    return todo[::-1] if run.resumed else todo


def show_plan(args: CapFiltArgs) -> None:
    """Print what would run and how long it would take; nothing is written and nothing started.

    Raises:
        ValueError: input, recipe or model that cannot be used; the message says why.
    """
    source = open_source(args.input, args.images, args.config.shard_size, args.source)
    read_settings(args, source.name)
    shards = source.shards()
    commits = committed(args.output)
    done = sum(not commit.retry_of for commit in commits)
    unit = "images" if shards and shards[0].items else "bytes"
    print(f"input   {args.input}: {len(shards):,} shards, {sum(s.size for s in shards):,} {unit}")
    print(f"output  {args.output}: {done:,} committed, {len(shards) - done:,} to do")
    print(_estimate(commits, len(shards) - done, args.ray.workers or 1))


def _estimate(commits: Sequence[Commit], todo: int, actors: int) -> str:
    """The time that ``todo`` shards take, judged by those that are done."""
    models = [commit.seconds.get("models", 0.0) for commit in commits]
    if not todo:
        return "nothing is left to do"
    if not models:
        return "no shard is done yet: the first ones will tell how long it takes"
    left = sum(models) / len(models) * todo / actors
    hours, minutes = divmod(int(left / 60), 60)
    return f"about {hours} h {minutes:02d} min of model time on {actors} workers, judged by those"
