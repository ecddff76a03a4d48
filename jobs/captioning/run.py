"""The shards of a CapFilt run, made on Ray: prepared, described by the models, committed."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from tqdm import tqdm

from cluster.ray.map import Bisection, Stages, map_shards
from cluster.ray.session import Resources
from cluster.storage.base import absolute_url
from cluster.storage.open import open_storage
from jobs.captioning.arguments import CapFiltArgs
from jobs.captioning.models import Describer, model_folder, read_processor
from jobs.captioning.plan import PlannedRun
from jobs.captioning.summary import Summary, Tally, summarise
from jobs.captioning.work import Work
from pipeline.capfilt.describe import Described, ImageSpec, Kept, ModelInput, prepare
from pipeline.capfilt.filters import FilterConfig
from pipeline.capfilt.gallery import build_gallery
from pipeline.capfilt.output import JsonLayout, assemble
from pipeline.shards.manifest import Commit, commit_shard, committed, compact, is_committed
from pipeline.sources.open import Source

_ENCODED, _LIBRARIES = 40_000, 1 << 29
"""Assumed bytes of an encoded image with its texts, and those of a process without any."""


def caption_shards(run: PlannedRun, todo: Sequence[Work], resources: Resources) -> Tally:
    """Make the shards of ``todo`` on the connected Ray, with a progress bar.

    Returns:
        What came of them, and the seconds that it took.
    """
    tally = Tally()
    if not todo:
        return tally
    start = time.perf_counter()
    listed = all(item.shard.items for item in todo)
    with tqdm(
        total=sum(item.shard.size for item in todo) if listed else len(todo),
        unit="image" if listed else "shard",
        desc="capfilt", mininterval=1.0, smoothing=0.1, dynamic_ncols=True,
    ) as bar:  # fmt: skip

        def done(item: Work, result: dict[str, Any]) -> None:
            tally.add(result)
            if tally.done == 1 and result["here"]:
                output = run.args.output
                if write_gallery(run.args, committed(output)):
                    bar.write(f"first captions to look at: {output}/gallery.html")
            speed = tally.images / max(time.time() - bar.start_t, 1e-9)
            dropped = tally.dropped.total()
            bar.set_postfix({"images/s": f"{speed:.1f}", "dropped": dropped}, refresh=False)
            bar.update(item.shard.size if listed else 1)

        map_shards(todo, _stages(run), run.args.ray, resources, done)
    tally.seconds = time.perf_counter() - start
    return tally


def _stages(run: PlannedRun) -> Stages:
    """A shard's way: prepared in a task, described by the models in an actor, committed in a task.

    A shard that kills its workers is searched for the samples that do it.
    """
    recipe, reader, output = run.args.config, run.source.reader(), absolute_url(run.args.output)
    specs = [
        read_processor(model_folder(name, getattr(recipe, name))).spec
        for name in ("captioner", "ranker")
    ]
    return Stages(
        prepare=partial(prepare_shard, reader, output, recipe.filters, specs),
        actor=partial(Describer, recipe, run.products),
        finish=partial(commit_described, output, recipe.keep, run.args.json_layout),
        bisection=Bisection(partial(_count_records, reader), Work.only, Work.without),
        memory=partial(prepared_bytes, [spec.size for spec in specs]),
    )


def prepared_bytes(sizes: Sequence[int], item: Work) -> int:
    """Bytes of main memory that ``prepare_shard`` takes, with the libraries of its process.

    A list tells its number of images and a tar its bytes; the other of the two is an assumption.

    Args:
        sizes: sides in pixels of the two images that are made of each.
    """
    size = item.shard.size
    images, encoded = (size, size * _ENCODED) if item.shard.items else (size // _ENCODED, size)
    return _LIBRARIES + images * sum(3 * side**2 for side in sizes) + encoded


def prepare_shard(
    source: Source, output: str, filters: FilterConfig, specs: Sequence[ImageSpec], item: Work
) -> tuple[tuple[Work, Kept | None], ModelInput | None]:
    """The shard ready for the models; nothing where another run has committed it meanwhile.

    Args:
        specs: image preparation of the captioner and of the ranker.

    Returns:
        The part that waits for the models' answer, and the part that is sent to them.
    """
    if is_committed(open_storage(output), item.name):
        return (item, None), None
    kept, model_input = prepare(item.records(source), filters, *specs)
    return (item, kept), model_input


def commit_described(
    output: str,
    keep: int,
    json_layout: JsonLayout,
    prepared: tuple[Work, Kept | None],
    described: Described | None,
) -> dict[str, Any]:
    """Publish a shard.

    Returns:
        Its counts, and whether it was published here and not by another run.
    """
    item, kept = prepared
    if kept is None or described is None:
        return {"here": False, "n": 0, "reasons": {}, "short": {}}
    shard = assemble(kept, described, keep, json_layout)
    stats = {**shard.stats, **item.about()}
    here = commit_shard(open_storage(output), item.name, shard.tar, shard.parquet, stats)
    return {"here": here, "n": stats["n"], "reasons": stats["reasons"], "short": described.short}


def _count_records(source: Source, item: Work) -> int:
    return sum(1 for _ in source.read(item.shard))


def write_gallery(args: CapFiltArgs, commits: Sequence[Commit]) -> bool:
    """Write ``gallery.html`` over what is committed, if one is wanted."""
    if args.gallery:
        storage = open_storage(args.output)
        storage.replace("gallery.html", build_gallery([(storage, commits)], args.gallery))
    return args.gallery > 0


def finish(run: PlannedRun, tally: Tally, begun: float) -> Summary:
    """Write the manifest and the complete gallery, and sum up.

    Args:
        begun: ``time.perf_counter()`` at the run's begin.
    """
    commits = committed(run.args.output)
    compact(run.storage, commits)
    write_gallery(run.args, commits)
    return summarise(commits, tally, time.perf_counter() - begun, run.args.output)
