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
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

from jobs import cli
from jobs.recipes.schema import Stage2Recipe
from jobs.training import budget, objectives, start
from jobs.training.command import Given, parse
from jobs.training.plan import make_plan
from jobs.training.run import train


def main(arguments: list[str] | None = None) -> int:
    """Check everything, then train."""
    given: Given[Stage2Recipe] = parse("finetune_caption", arguments, __doc__)
    if given.dry_run:
        return budget.print_dry_run(given)
    plan = budget.check(make_plan(given))
    start.require_init(plan, given, "a stage-2 run")
    stage = start.new_stage2(plan.recipe, bert=False)
    if plan.fresh:
        start.load_pretrained(stage, given.init)
    module = start.with_encoder(plan.recipe, stage, plan.fresh)
    return train(plan, module, objectives.captions)


if __name__ == "__main__":
    cli.run(main)
