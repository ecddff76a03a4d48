"""Stage 2, generative learning: the Q-Former speaks to a frozen language model (section 3.3).

    deepspeed jobs/stage2.py --recipe tinyworld-t5 --data runs/capfilt --init runs/stage1 \\
        --out runs/stage2
    python jobs/stage2.py --recipe vit-g-flant5-xxl --dry-run

--init takes a stage-1 run (its latest checkpoint) or one checkpoint of it; without it the Q-Former
starts from nothing (figure 5). The same command again resumes from the latest checkpoint in --out.
"""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from cluster.dist import derive_seed, place
from jobs import cli, models, train_cli, train_loop
from jobs.models import Language
from jobs.recipes.train import Stage2Recipe
from jobs.train_loop import Task
from modeling.blip2 import Stage2
from modeling.vision import ImageEncoder
from pipeline.loader import Batch


def main(arguments: list[str] | None = None) -> int:
    """Check everything, then train."""
    try:
        given = train_cli.parse("stage2", sys.argv[1:] if arguments is None else arguments)
        recipe = models.fit(given.config)
        if given.dry_run:
            with torch.device("meta"):
                module = Stage2(recipe.model)
            print(train_loop.describe(recipe, module, place().world))
            return 0
        plan = train_loop.prepare(recipe, given.data, given.out)
        module = make_module(recipe, "" if plan.found else given.init)
    except (ValueError, FileNotFoundError):
        if place().rank:  # every rank meets the same mistake: one line is enough
            return 2
        raise
    return train_loop.train(plan, partial(make_task, recipe, module))


def make_module(recipe: Stage2Recipe, init: str) -> Stage2:
    """Stage 2's trainable part, from a stage-1 checkpoint where ``init`` names one.

    Raises:
        ValueError: what ``init`` names is no stage-1 checkpoint of these sizes.
    """
    torch.manual_seed(derive_seed("init", recipe.run.seed))
    module = Stage2(recipe.model)
    if init:
        found = models.start_from_stage1(module, init)
        if place().rank == 0:
            print(f"starting from {found.folder}", flush=True)
    return module


def make_task(recipe: Stage2Recipe, module: Stage2, device: torch.device) -> Task:
    """Stage 2 as the training loop sees it; encoder and language model stay outside the engine."""
    choice, speaker = recipe.encoder, recipe.language
    encoder = models.load_encoder(choice.name, choice.image_size, choice.dtype).to(device)
    language = models.load_language(speaker.name, speaker.dtype, speaker.max_text)
    language.to(device)
    return Task(module, partial(compute_losses, encoder, language))


def compute_losses(
    encoder: ImageEncoder,
    language: Language,
    engine: Any,
    batch: Batch,
    draws: torch.Generator,
) -> Mapping[str, Tensor]:
    """Language-modelling loss of the captions given their images' soft prompts."""
    with torch.no_grad():
        tokens_BPD = encoder(batch.images_B3HW.to(language.device, non_blocking=True))
    prompts_BQD = engine(tokens_BPD)
    return {"loss": language.loss(prompts_BQD, batch.texts, draws)}


if __name__ == "__main__":
    cli.run(main)
