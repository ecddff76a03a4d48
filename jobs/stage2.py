"""Stage 2, generative learning: the Q-Former speaks to a frozen language model (section 3.3).

    deepspeed jobs/stage2.py --recipe tinyworld-t5 --data runs/capfilt --init runs/stage1 \\
        --out runs/stage2
    python jobs/stage2.py --recipe vit-g-flant5-xxl --dry-run

--init takes a stage-1 run (its latest checkpoint) or one checkpoint of it; without it the Q-Former
starts from nothing, or from BERT where the recipe names one (figure 5). The same command again
resumes from the latest checkpoint in --out.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import nn

from jobs import cli, models, train_cli, train_models
from jobs.recipes.train import Stage2Recipe
from jobs.train_task import Losses, Micro, Task


def main(arguments: list[str] | None = None) -> int:
    """Check everything, then train."""
    return train_cli.main("stage2", arguments, make_module, make_task)


def make_module(recipe: Stage2Recipe, init: str, fresh: bool) -> nn.Module:
    """All that trains; ``init`` names a stage-1 run whose Q-Former is taken."""
    stage = train_models.new_stage(recipe, fresh and not init)
    if init:
        train_models.say_start(models.start_from_stage1(stage, init))
    return train_models.with_encoder(recipe, stage, fresh)


def make_task(recipe: Stage2Recipe, module: nn.Module, device: torch.device) -> Task:
    """Stage 2 as the training loop sees it; frozen models stay outside the engine."""
    images = train_models.image_input(recipe, device)
    language = models.load_language(recipe.language)
    language.to(device)

    def losses(engine: Any, micros: Sequence[Micro]) -> Iterator[Losses]:
        """Language-modelling loss of the captions given their images' soft prompts."""
        for micro in micros:
            batch = micro.batch
            prompt_texts = [recipe.prompt] * len(batch.texts) if recipe.prompt else None
            seen = images(batch)
            micro.seed()
            yield {"loss": language.loss(engine(seen), batch.texts, None, prompt_texts)}

    return Task(module, losses)


if __name__ == "__main__":
    cli.run(main)
