"""Captioning finetune: stage 2 goes on with its image encoder, after a fixed prompt (tables 3, 7).

    deepspeed jobs/finetune_caption.py --recipe caption-vit-g-opt-2.7b --data runs/coco \\
        --init runs/stage2 --out runs/caption
    python jobs/finetune_caption.py --recipe caption-vit-g-opt-2.7b --dry-run --world 16

--data are shards of human captions (``jobs/capfilt.py`` passes them through); at each visit of an
image one of its captions is drawn. --init takes a stage-2 run. The same command again resumes.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.environment  # noqa: F401  a line, not a traceback, where packages are missing

from torch import nn

from jobs import cli, stage2
from jobs.recipes.schema import Stage2Recipe
from jobs.training import command, start


def main(arguments: list[str] | None = None) -> int:
    """Check everything, then train."""
    return command.main("finetune_caption", arguments, make_module, stage2.make_task)


def make_module(recipe: Stage2Recipe, init: str, fresh: bool) -> nn.Module:
    """The image encoder and the stage 2 of a pre-training run."""
    stage = start.new_stage(recipe, fresh and not init)
    if init:
        start.start_from(stage, init, "stage2")
    return start.with_encoder(recipe, stage, fresh)


if __name__ == "__main__":
    cli.run(main)
