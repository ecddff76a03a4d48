"""Retrieval finetune: stage 1 goes on with its image encoder (tables 5, 6 and 9).

    deepspeed jobs/finetune_retrieval.py --recipe retrieval-vit-g --data runs/coco \\
        --init runs/stage1 --out runs/retrieval
    python jobs/finetune_retrieval.py --recipe retrieval-vit-g --dry-run --world 16

--data are shards of human captions (``jobs/capfilt.py`` passes them through). Samples that show the
same image are no negatives of each other. --init takes a stage-1 run. The same command again
resumes.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

from jobs import cli
from jobs.recipes.schema import Stage1Recipe
from jobs.training import budget, objectives, start
from jobs.training.command import Given, parse
from jobs.training.plan import make_plan
from jobs.training.run import train


def main(arguments: list[str] | None = None) -> int:
    """Check everything, then train."""
    given: Given[Stage1Recipe] = parse("finetune_retrieval", arguments, __doc__)
    if given.dry_run:
        return budget.print_dry_run(given)
    plan = budget.check(make_plan(given))
    start.require_init(plan, given, "a stage-1 run")
    stage = start.new_stage1(plan.recipe, bert=False)
    if plan.fresh:
        start.load_pretrained(stage, given.init)
    module = start.with_encoder(plan.recipe, stage, plan.fresh)
    return train(plan, module, objectives.representation)


if __name__ == "__main__":
    cli.run(main)
