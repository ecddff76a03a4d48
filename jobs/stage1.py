"""Stage 1, representation learning: a Q-Former learns from a frozen image encoder (section 3.2).

    deepspeed jobs/stage1.py --recipe tinyworld --data runs/capfilt --out runs/stage1
    DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 deepspeed --num_accelerators 2 jobs/stage1.py ...
    python jobs/stage1.py --recipe vit-g --dry-run

The same command again resumes from the latest checkpoint in --out.
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
    given: Given[Stage1Recipe] = parse("stage1", arguments, __doc__)
    if given.dry_run:
        return budget.print_dry_run(given)
    plan = budget.check(make_plan(given))
    stage = start.new_stage1(plan.recipe, bert=plan.fresh)
    module = start.with_encoder(plan.recipe, stage, plan.fresh)
    return train(plan, module, objectives.representation)


if __name__ == "__main__":
    cli.run(main)
