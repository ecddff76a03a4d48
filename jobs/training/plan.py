"""A training run that has been checked and can start: recipe, data, order, checkpoint."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from cluster import checkpoint
from cluster.ranks import dist
from jobs import recipes
from jobs.models import encoder_settings, precision
from jobs.recipes.schema import RunConfig
from jobs.training import resumption
from jobs.training.command import Given, RecipeT
from jobs.training.resolve import resolve
from pipeline.loading.loader import LoaderConfig, make_schedule
from pipeline.loading.schedule import Schedule
from pipeline.shards.reading import Shards, data_hash, open_shards

OpenData = Callable[[str, LoaderConfig], tuple[Shards, ...]]
"""(``--data``, loader configuration) -> the sources of samples."""


@dataclass(frozen=True)
class Plan(Generic[RecipeT]):
    """A run that has been checked and can start.

    Attributes:
        recipe: the resolved recipe; formats that are ``auto`` are settled when all ranks have met.
        out: folder of the run's log: its own, or one of this node's where the run is on S3.
        sources: data to train on.
        schedule: order of the samples, for any step.
        writer: saves the run's checkpoints.
        found: checkpoint that the run resumes; None for a new run.
        validation: data to measure the losses on; empty for none.
        step_flops: FLOPs of a step over all ranks, for the log's share of the peak; 0: unknown.
    """

    recipe: RecipeT
    out: Path
    sources: tuple[Shards, ...]
    schedule: Schedule
    writer: checkpoint.Writer
    found: checkpoint.Checkpoint | None
    validation: tuple[Shards, ...] = ()
    step_flops: float = 0.0

    @property
    def run(self) -> RunConfig:
        """The recipe's run configuration."""
        return self.recipe.run

    @property
    def fresh(self) -> bool:
        """Whether the run starts anew, so that weights have to be loaded or drawn."""
        return self.found is None

    @property
    def done(self) -> int:
        """Steps made before this start."""
        return self.found.step if self.found else 0

    @property
    def samples(self) -> int:
        """Samples of the data."""
        return sum(sum(source.sizes) for source in self.sources)

    def digest(self) -> str:
        """Hash of all that decides what the run computes; ranks compare it before they start."""
        text = json.dumps([recipes.as_json(self.recipe), data_hash(self.sources), self.done])
        return hashlib.sha256((text + self.schedule.fingerprint()).encode()).hexdigest()


def open_sources(data: str, config: LoaderConfig) -> tuple[Shards, ...]:
    """The sources of ``--data``: CapFilt outputs or folders of tars, separated by commas.

    Raises:
        ValueError: one of them cannot be used.
    """
    cache = config.node_cache()
    return tuple(open_shards(url, cache) for url in data.split(",") if url)


def make_plan(given: Given[RecipeT], open_data: OpenData = open_sources) -> Plan[RecipeT]:
    """Open the data and the run's folder, find what is to be resumed, and resolve the recipe.

    Args:
        given: the command line.
        open_data: reader of ``--data``.

    Raises:
        ValueError: data, a model or a checkpoint that cannot be used; names field, value, remedy.
    """
    loader = given.config.run.loader
    sources = open_data(given.data, loader)
    store = checkpoint.open_store(given.out)
    found, damaged = checkpoint.resume(store)
    recipe = resolve(
        given.config,
        dist.this_process().world,
        samples=sum(sum(source.sizes) for source in sources),
        epochs=given.epochs,
        before=found.recipe if found else encoder_settings.of_init(given.init),
        resumed=found is not None,
    )
    if found is not None:
        recipe = precision.keep(recipe, resumption.recipe_of(found, recipe))
        resumption.check_same(found, recipe, sources, store.url)
    plan = Plan(
        recipe,
        out=store.folder,
        sources=sources,
        schedule=make_schedule(sources, loader, recipe.run.seed, recipe.run.global_batch),
        writer=checkpoint.Writer(store, recipe.run.keep, found.where if found else ""),
        found=found,
        validation=open_data(given.validate, loader) if given.validate else (),
    )
    if dist.this_process().rank == 0:
        store.pull_logs()
        for line in checkpoint.set_aside(store, damaged, found) if found else ():
            print(line, flush=True)
    return plan
