"""Instruction tuning (InstructBLIP): stage 2 learns to follow instructions over many data sets.

    deepspeed jobs/instruct.py --recipe instruct-flant5-xl --data data,web=runs/capfilt/web \\
        --validate data:val --init runs/stage2,runs/stage1 --out runs/instruct
    python jobs/instruct.py --recipe instruct-vicuna-7b --dry-run --world 16

--data is DIR, with the authors' files of each data set in DIR/NAME, and NAME=PATH for each that
lies elsewhere; the recipe names the data sets (--instructions.sets). The web images are an output
of CapFilt on web images alone. --init takes the stage-2 run of the same language model and, behind
it, the stage-1 run that it came from, which has the Q-Former's text branch. The same command again
resumes. See docs/instruct.md.
"""

import sys
from functools import partial
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

from cluster.ranks import dist
from jobs import cli
from jobs.instructions.sets import open_sets
from jobs.recipes.schema import InstructRecipe
from jobs.training import budget, objectives, start
from jobs.training.command import Given, parse
from jobs.training.plan import make_plan
from jobs.training.run import train
from pipeline.instructions.mixing import describe


def main(arguments: list[str] | None = None) -> int:
    """Check everything, then train."""
    given: Given[InstructRecipe] = parse("instruct", arguments, __doc__)
    if given.dry_run:
        return budget.print_dry_run(given)
    mix = given.config.instructions
    opened = partial(open_sets, names=mix.sets, config=mix)
    plan = budget.check(make_plan(given, opened))
    start.require_init(plan, given, "a stage-2 run and the stage-1 run behind it, STAGE2,STAGE1")
    if dist.this_process().rank == 0:
        print(*describe(plan.sources, mix), sep="\n", flush=True)
    stage = start.new_stage2(plan.recipe, bert=False)
    if plan.fresh:
        start.load_for_instructions(stage, given.init)
    return train(plan, stage, objectives.instructions)


if __name__ == "__main__":
    cli.run(main)
