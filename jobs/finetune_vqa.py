"""VQA finetune: stage 2 and its image encoder learn to answer (tables 4 and 8).

    deepspeed jobs/finetune_vqa.py --recipe vqa-vit-g-flant5-xl --data runs/vqav2:train \
        --init runs/stage1,runs/stage2 --out runs/vqa
    python jobs/finetune_vqa.py --recipe vqa-vit-g-flant5-xl --dry-run --world 16

--data is FOLDER:SPLIT, several separated by commas, with the files that ``jobs/evaluate.py`` reads:
``annotations/vqa_SPLIT_questions.json`` and ``vqa_SPLIT_annotations.json``, and the images. The
Q-Former reads the question too. --init takes a stage-2 run; a stage-1 run in front of it brings
what stage 2 left out, the Q-Former's text parts, which otherwise come from the recipe's BERT.
The same command again resumes.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

from evaluation.benchmarks.folder import read_questions
from jobs import cli
from jobs.recipes.schema import Stage2Recipe
from jobs.training import budget, objectives, start
from jobs.training.command import Given, parse
from jobs.training.plan import make_plan
from jobs.training.run import train
from pipeline.loading.loader import LoaderConfig
from pipeline.loading.questions import AnsweredQuestion, QuestionShards
from pipeline.shards.reading import Shards


def main(arguments: list[str] | None = None) -> int:
    """Check everything, then train."""
    given: Given[Stage2Recipe] = parse("finetune_vqa", arguments, __doc__)
    if given.dry_run:
        return budget.print_dry_run(given)
    plan = budget.check(make_plan(given, open_questions))
    start.require_init(plan, given, "a stage-2 run")
    *stage1, stage2 = given.init.split(",")
    stage = start.new_stage2(plan.recipe, bert=plan.fresh and not stage1)
    if plan.fresh:
        for run in stage1:
            start.load_stage1(stage, run)
        start.load_pretrained(stage, stage2)
    module = start.with_encoder(plan.recipe, stage, plan.fresh)
    return train(plan, module, objectives.answers)


def open_questions(data: str, config: LoaderConfig) -> tuple[Shards, ...]:
    """The questions of each FOLDER:SPLIT.

    Raises:
        ValueError: no split named, a file or image that is not there, or nothing to learn.
    """
    return tuple(_open(place) for place in data.split(",") if place)


def _open(place: str) -> QuestionShards:
    folder, _, split = place.rpartition(":")
    if not folder or "/" in split:
        raise ValueError(f"--data {place}: name the split too, as in {place}:train")
    found = read_questions(Path(folder), split, "vqa")
    asked = [
        AnsweredQuestion(str(q.question_id), found.images[q.image_id], q.text, q.answers)
        for q in found.questions
    ]
    return QuestionShards(place, asked)


if __name__ == "__main__":
    cli.run(main)
