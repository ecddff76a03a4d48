"""LLaVA: a bridge from an image encoder's grid to a language model, in two stages (4.2).

    deepspeed jobs/llava.py --stage 1 --recipe llava-7b --data runs/capfilt --out runs/llava1
    deepspeed jobs/llava.py --stage 2 --recipe llava-7b --init runs/llava1 --out runs/llava2 \\
        --data llava_instruct_150k.json:coco/train2014
    python jobs/llava.py --stage 2 --recipe llava-1.5-7b --dry-run --world 8 --gpu a100-80g

Stage 1 trains the bridge alone; stage 2 the bridge and the whole language model, whose weights,
gradients and optimizer state are then divided among the ranks. --data is a CapFilt output, a folder
of tars, or FILE.json:IMAGES in LLaVA's form; several are separated by commas. The same command
again resumes from the latest checkpoint in --out, also on another number of ranks.
"""

import sys
from functools import partial
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

from jobs import cli
from jobs.recipes.schema import LlavaRecipe
from jobs.training import budget, llava
from jobs.training.command import Given, parse
from jobs.training.plan import make_plan, open_sources
from jobs.training.run import train
from pipeline.loading.conversations import is_conversations, open_conversations
from pipeline.loading.loader import LoaderConfig
from pipeline.shards.reading import Shards


def main(arguments: list[str] | None = None) -> int:
    """Check everything, then train."""
    stage, line = take_stage(sys.argv[1:] if arguments is None else arguments)
    given: Given[LlavaRecipe] = parse("llava", line, __doc__, kind=f"llava_stage{stage}")
    if given.dry_run:
        return budget.print_dry_run(given)
    plan = budget.check(make_plan(given, open_talks))
    models = llava.load_models(plan.recipe)
    plan = llava.settle(plan, models)
    module = llava.new_module(plan.recipe, models)
    if plan.fresh and given.init:
        llava.start_from(module, plan.recipe, given.init)
    return train(plan, module, partial(llava.conversations, models))


def take_stage(line: list[str]) -> tuple[str, list[str]]:
    """The value of ``--stage``, and the rest of the command line.

    Raises:
        ValueError: it is not there, or is neither 1 nor 2.
    """
    wants_help = bool({"-h", "--help"} & set(line))
    stage, rest = "1" if wants_help else "", list[str]()
    words = iter(line)
    for word in words:
        if word == "--stage" or word.startswith("--stage="):
            stage = next(words, "") if word == "--stage" else word.removeprefix("--stage=")
        else:
            rest.append(word)
    if stage not in ("1", "2"):
        raise ValueError(f"--stage {stage or '(none given)'}: give 1 (the bridge) or 2 (all)")
    return stage, rest


def open_talks(data: str, config: LoaderConfig) -> tuple[Shards, ...]:
    """The sources of ``--data``, in their order.

    Raises:
        ValueError: one of them cannot be used.
    """
    opened: list[Shards] = []
    for name in filter(None, data.split(",")):
        talks = is_conversations(name)
        opened += [open_conversations(name)] if talks else open_sources(name, config)
    return tuple(opened)


if __name__ == "__main__":
    cli.run(main)
