"""Stage 1, representation learning: a Q-Former learns from a frozen image encoder (section 3.2).

    deepspeed jobs/stage1.py --recipe tinyworld --data runs/capfilt --out runs/stage1
    DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 deepspeed --num_accelerators 2 jobs/stage1.py ...
    python jobs/stage1.py --recipe vit-g --dry-run

The same command again resumes from the latest checkpoint in --out.
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
from jobs.recipes.train import Stage1Recipe
from jobs.train_loop import Task
from modeling.blip2 import Stage1
from modeling.vision import ImageEncoder
from pipeline.loader import Batch


def main(arguments: list[str] | None = None) -> int:
    """Check everything, then train."""
    try:
        given = train_cli.parse("stage1", sys.argv[1:] if arguments is None else arguments)
        recipe = models.fit(given.config)
        if given.dry_run:
            with torch.device("meta"):
                module = Stage1(recipe.model)
            print(train_loop.describe(recipe, module, place().world))
            return 0
        plan = train_loop.prepare(recipe, given.data, given.out)
    except (ValueError, FileNotFoundError):
        if place().rank:  # every rank meets the same mistake: one line is enough
            return 2
        raise
    return train_loop.train(plan, partial(make_task, recipe, fresh=plan.found is None))


def make_task(recipe: Stage1Recipe, device: torch.device, fresh: bool = True) -> Task:
    """Stage 1 as the training loop sees it: module, losses, tokeniser."""
    choice = recipe.encoder
    encoder = models.load_encoder(choice.name, choice.image_size, choice.dtype).to(device)
    torch.manual_seed(derive_seed("init", recipe.run.seed))
    module = Stage1(recipe.model)
    if recipe.bert and fresh:
        models.start_from_bert(module, recipe.bert)
    losses = partial(compute_losses, encoder, device)
    return Task(module, losses, models.text_reader(recipe))


def compute_losses(
    encoder: ImageEncoder, device: torch.device, engine: Any, batch: Batch, draws: torch.Generator
) -> Mapping[str, Tensor]:
    """ITC, ITM and ITG of a batch; the frozen encoder runs outside the engine."""
    with torch.no_grad():
        tokens_BPD = encoder(batch.images_B3HW.to(device, non_blocking=True))
    ids_BL, mask_BL = (batch.tokens[name].to(device, non_blocking=True) for name in ("ids", "mask"))
    return engine(tokens_BPD, ids_BL, mask_BL)


if __name__ == "__main__":
    cli.run(main)
