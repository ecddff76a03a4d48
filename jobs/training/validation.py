"""The losses on samples that are not trained on, every so many steps.

The same samples, crops and draws each time, whatever the number of ranks; no dropout.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from cluster.ranks import dist
from cluster.ranks.dist import Process
from jobs.recipes.schema import RunConfig
from jobs.training.objective import Micro, Objective
from pipeline.loading.loader import Batches, Samples, make_schedule
from pipeline.pixels import CLIP_PIXELS, PixelConfig
from pipeline.shards.reading import Shards
from pipeline.text_processors import SampleText
from pipeline.transforms import TrainTransform


class Validation:
    """Measures an objective's losses over the first ``run.validate_batches`` global batches.

    Args:
        sources: of ``--validate``.
        text: rule for captions and questions, the recipe's.
        pixels: the encoder's own preparation of images.

    Raises:
        ValueError: they hold fewer samples than a global batch has.
    """

    def __init__(
        self,
        sources: Sequence[Shards],
        run: RunConfig,
        here: Process,
        accumulation: int,
        *,
        text: SampleText = "plain",
        pixels: PixelConfig = CLIP_PIXELS,
    ) -> None:
        self._run, self._here, self._accumulation = run, here, accumulation
        held = sum(sum(source.sizes) for source in sources)
        self._batches = min(run.validate_batches, held // run.global_batch)
        if not self._batches:
            raise ValueError(
                f"--validate has {held} samples, a step takes {run.global_batch}; give more of "
                "them, or a smaller --global-batch"
            )
        schedule = make_schedule(
            sources, replace(run.loader, weights=()), seed=0, global_batch=run.global_batch
        )
        whole = replace(run.transform, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
        transform = TrainTransform(whole, pixels)
        self._samples = Samples(sources, schedule, transform, "top1", text)

    def due(self, made: int) -> bool:
        """Whether the losses are measured after step ``made``."""
        every = self._run.validate_every or self._run.save_every
        return made % every == 0 or made == self._run.steps

    @torch.no_grad()
    def measure(self, engine: Any, objective: Objective) -> dict[str, float]:
        """Mean losses over batches and ranks. Collective."""
        engine.eval()
        sums: dict[str, float] = {}
        with Batches(
            self._samples,
            self._run.loader,
            range(self._batches),
            rank=self._here.rank,
            world=self._here.world,
            accumulation=self._accumulation,
            tokenise=objective.tokenise,
        ) as batches:
            for _ in range(self._batches):
                micros = [Micro(next(batches), lambda: None) for _ in range(self._accumulation)]
                for losses in objective.losses(engine, micros):
                    for name, value in losses.items():
                        sums[name] = sums.get(name, 0.0) + value.item()
        engine.train()
        count = self._batches * self._accumulation
        means = dist.all_reduce((value / count for value in sums.values()), "mean")
        return dict(zip(sums, means, strict=True))
