"""Stage 1, representation learning: a Q-Former learns from a frozen image encoder (section 3.2).

    deepspeed jobs/stage1.py --recipe tinyworld --data runs/capfilt --out runs/stage1
    DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 deepspeed --num_accelerators 2 jobs/stage1.py ...
    python jobs/stage1.py --recipe vit-g --dry-run

The same command again resumes from the latest checkpoint in --out.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.environment  # noqa: F401  a line, not a traceback, where packages are missing

import torch
from torch import nn

from jobs import cli
from jobs.models.bert import text_reader
from jobs.recipes.schema import Stage1Recipe
from jobs.training import command, start
from jobs.training.objective import Losses, Micro, Task
from modeling import contrast


def main(arguments: list[str] | None = None) -> int:
    """Check everything, then train."""
    return command.main("stage1", arguments, make_module, make_task)


def make_module(recipe: Stage1Recipe, init: str, fresh: bool) -> nn.Module:
    """All that trains; ``init`` names a stage-1 run to finetune."""
    stage = start.new_stage(recipe, fresh)
    if init:
        start.start_from(stage, init, "stage1")
    return start.with_encoder(recipe, stage, fresh)


def make_task(recipe: Stage1Recipe, module: nn.Module, device: torch.device) -> Task:
    """Stage 1 as the training loop sees it: module, losses, tokeniser."""
    images = start.image_input(recipe, device)

    move = methodcaller("to", device, non_blocking=True)

    def pairs(micro: Micro) -> contrast.Pairs:
        batch = micro.batch
        ids_B = batch.image_ids_B if recipe.image_ids else None
        return contrast.Pairs(
            partial(images, batch),
            move(batch.tokens["ids"]),
            move(batch.tokens["mask"]),
            None if ids_B is None else move(ids_B),
            move(batch.draws_B2),
            micro.seed,
        )

    def losses(engine: Any, micros: Sequence[Micro]) -> Iterator[Losses]:
        """ITC, ITM and ITG of each micro-batch, all compared with the whole step's samples."""
        frozen = not recipe.encoder.train
        return contrast.losses_in_turn(engine, [pairs(micro) for micro in micros], frozen)

    return Task(module, losses, text_reader(recipe))


if __name__ == "__main__":
    cli.run(main)
