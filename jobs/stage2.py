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
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

from jobs import cli
from jobs.recipes.schema import Stage2Recipe
from jobs.training import budget, objectives, start
from jobs.training.command import Given, parse
from jobs.training.plan import make_plan
from jobs.training.run import train


def main(arguments: list[str] | None = None) -> int:
    """Check everything, then train."""
    given: Given[Stage2Recipe] = parse("stage2", arguments, __doc__)
    if given.dry_run:
        return budget.print_dry_run(given)
    plan = budget.check(make_plan(given))
    stage = start.new_stage2(plan.recipe, bert=plan.fresh and not given.init)
    if plan.fresh and given.init:
        start.load_stage1(stage, given.init)
    module = start.with_encoder(plan.recipe, stage, plan.fresh)
    return train(plan, module, objectives.captions)


if __name__ == "__main__":
    cli.run(main)
