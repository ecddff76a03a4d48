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
    import jobs.environment  # noqa: F401  a line, not a traceback, where packages are missing

import torch
from torch import Tensor, nn

from evaluation.benchmarks.folder import read_questions
from jobs import cli
from jobs.models.bert import load_reader, tokenise
from jobs.recipes.schema import Stage2Recipe
from jobs.training import command, start
from jobs.training.objective import Task
from pipeline.loading.loader import Batch, LoaderConfig
from pipeline.loading.questions import Asked, QuestionShards
from pipeline.shards.reading import Shards


def main(arguments: list[str] | None = None) -> int:
    """Check everything, then train."""
    return command.main("finetune_vqa", arguments, make_module, make_task, open_questions)


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
        Asked(str(q.question_id), found.images[q.image_id], q.text, q.answers)
        for q in found.questions
    ]
    return QuestionShards(place, asked)


def make_module(recipe: Stage2Recipe, init: str, fresh: bool) -> nn.Module:
    """The image encoder and the stage 2 of a pre-training run, with a Q-Former that reads."""
    *first, last = init.split(",")
    stage = start.new_stage(recipe, fresh and not first)
    for run in first:
        start.start_from_stage1(stage, run)
    if last:
        start.start_from(stage, last, "stage2")
    return start.with_encoder(recipe, stage, fresh)


def make_task(recipe: Stage2Recipe, module: nn.Module, device: torch.device) -> Task:
    """The loop's view: the question goes into the Q-Former and, as a prompt, into the LLM."""
    images = start.image_input(recipe, device)
    reader = load_reader(recipe.tokenizer, recipe.model)

    def asked(batch: Batch) -> list[str]:
        return [recipe.prompt.replace("{}", question) for question in batch.questions]

    def shown(batch: Batch) -> tuple[Tensor, ...]:
        read = tokenise(reader, batch.questions, recipe.max_question)
        return images(batch), read["ids"].to(device), read["mask"].to(device)

    return Task(module, start.language_losses(recipe, device, shown, asked))


if __name__ == "__main__":
    cli.run(main)
