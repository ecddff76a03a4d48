"""Stage 2, generative learning: the Q-Former speaks to a frozen language model (section 3.3).

    deepspeed jobs/stage2.py --recipe tinyworld-t5 --data runs/capfilt --init runs/stage1 \\
        --out runs/stage2
    python jobs/stage2.py --recipe vit-g-flant5-xxl --dry-run

--init takes a stage-1 run (its latest checkpoint) or one checkpoint of it; without it the Q-Former
starts from nothing, or from BERT where the recipe names one (figure 5). The same command again
resumes from the latest checkpoint in --out.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.environment  # noqa: F401  a line, not a traceback, where packages are missing

import torch
from torch import Tensor, nn

from jobs import cli
from jobs.recipes.schema import Stage2Recipe
from jobs.training import command, start
from jobs.training.objective import Task
from pipeline.loading.loader import Batch


def main(arguments: list[str] | None = None) -> int:
    """Check everything, then train."""
    return command.main("stage2", arguments, make_module, make_task)


def make_module(recipe: Stage2Recipe, init: str, fresh: bool) -> nn.Module:
    """All that trains; ``init`` names a stage-1 run whose Q-Former is taken."""
    stage = start.new_stage(recipe, fresh and not init)
    if init:
        start.start_from_stage1(stage, init)
    return start.with_encoder(recipe, stage, fresh)


def make_task(recipe: Stage2Recipe, module: nn.Module, device: torch.device) -> Task:
    """Stage 2 as the training loop sees it; frozen models stay outside the engine."""
    images = start.image_input(recipe, device)
    prompt = recipe.prompt or None

    def prompts(batch: Batch) -> list[str] | None:
        return [prompt] * len(batch.texts) if prompt is not None else None

    def shown(batch: Batch) -> tuple[Tensor, ...]:
        return (images(batch),)

    return Task(module, start.language_losses(recipe, device, shown, prompts))


if __name__ == "__main__":
    cli.run(main)
