"""The objectives of the training jobs, each as a function of recipe, module and device.

Frozen models live here, outside the engine: the image encoder of a pre-training stage, the language
model of stage 2 and its finetunes.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor, nn

from cluster.ranks.sharding import shard_frozen
from jobs.models.bert import load_reader, text_reader, tokenise_instructions
from jobs.models.encoder_settings import pixels_of
from jobs.models.encoders import load_encoder
from jobs.models.languages import load_language
from jobs.recipes.schema import Stage1Recipe, Stage2Recipe, TrainRecipe
from jobs.training.objective import Losses, Micro, Objective
from modeling import contrast
from pipeline.loading.loader import Batch

Show = Callable[[Batch], tuple[Tensor, ...]]
"""A batch -> the tensors that the engine is given."""


def representation(recipe: Stage1Recipe, module: nn.Module, device: torch.device) -> Objective:
    """Stage 1: contrast (ITC), matching (ITM) and generation (ITG) over a step's samples (3.2)."""
    images = image_input(recipe, device)
    move = methodcaller("to", device, non_blocking=True)

    def pairs(micro: Micro) -> contrast.Pairs:
        batch = micro.batch
        ids_B = batch.image_ids_B if recipe.image_ids else None
        return contrast.Pairs(
            partial(images, batch),
            move(batch.tokens["ids"]),
            move(batch.tokens["mask"]),
            None if ids_B is None else move(ids_B),
            move(batch.draws_B2),
            micro.seed,
        )

    def losses(engine: Any, micros: Sequence[Micro]) -> Iterator[Losses]:
        frozen = not recipe.encoder.train
        return contrast.losses_in_turn(engine, [pairs(micro) for micro in micros], frozen)

    return Objective(module, losses, text_reader(recipe))


def captions(recipe: Stage2Recipe, module: nn.Module, device: torch.device) -> Objective:
    """Stage 2 and captioning: texts given their images' soft prompts and a fixed prompt (3.3)."""
    images = image_input(recipe, device)
    prompt = recipe.prompt

    def shown(batch: Batch) -> tuple[Tensor, ...]:
        return (images(batch),)

    def prompts(batch: Batch) -> list[str] | None:
        return [prompt] * len(batch.texts) if prompt else None

    return Objective(module, _language_losses(recipe, device, shown, prompts))


def answers(recipe: Stage2Recipe, module: nn.Module, device: torch.device) -> Objective:
    """VQA: answers given the image and the question, which goes into the Q-Former and, as a prompt,
    into the language model (table 8).
    """

    def prompts(batch: Batch) -> list[str]:
        return [recipe.prompt.replace("{}", question) for question in batch.questions]

    shown = _image_and_text(recipe, device)
    return Objective(module, _language_losses(recipe, device, shown, prompts))


def instructions(recipe: Stage2Recipe, module: nn.Module, device: torch.device) -> Objective:
    """Instruction tuning: answers given the image and the instruction, which the language model
    reads as plain text, and the Q-Former too where it reads text (InstructBLIP, section 2.3).
    """

    def prompts(batch: Batch) -> list[str]:
        return batch.questions

    shown = _image_and_text(recipe, device)
    return Objective(module, _language_losses(recipe, device, shown, prompts))


def _image_and_text(recipe: Stage2Recipe, device: torch.device) -> Show:
    """The image's tokens and, for a Q-Former that reads text, the batch's questions."""
    images = image_input(recipe, device)
    if not recipe.model.qformer.text:
        return lambda batch: (images(batch),)
    reader = load_reader(recipe.tokenizer, recipe.model)

    def shown(batch: Batch) -> tuple[Tensor, ...]:
        read = tokenise_instructions(reader, batch.questions, recipe)
        return images(batch), read["ids"].to(device), read["mask"].to(device)

    return shown


def image_input(recipe: TrainRecipe, device: torch.device) -> Callable[[Batch], Tensor]:
    """A function from a batch to what the engine is given of its images.

    Returns:
        The frozen encoder's tokens ``B P D``, computed outside the engine, or the pixels
        ``B 3 H W`` where the encoder trains inside it.
    """
    pixels = pixels_of(recipe.encoder)
    if recipe.encoder.train:
        return lambda batch: batch.pixels_B3HW(device, pixels)
    encoder: Any = load_encoder(recipe.encoder).to(device)
    if recipe.encoder.compile:
        encoder = torch.compile(encoder)

    def tokens(batch: Batch) -> Tensor:
        with torch.no_grad():
            return encoder(batch.pixels_B3HW(device, pixels))

    return tokens


def _language_losses(
    recipe: Stage2Recipe,
    device: torch.device,
    shown: Show,
    prompts: Callable[[Batch], list[str] | None],
) -> Callable[[Any, Sequence[Micro]], Iterator[Losses]]:
    """The language-modelling loss of texts given their images' soft prompts.

    Every token weighs alike, whatever micro-batch and rank it is in.

    Args:
        prompts: text in front of each of a batch's texts, itself not learned; None for none.
    """
    language = load_language(recipe.language)
    if recipe.language.shard:
        shard_frozen(language.model, device)
    else:
        language.to(device)

    def losses(engine: Any, micros: Sequence[Micro]) -> Iterator[Losses]:
        rows = [(m.batch.texts, m.batch.draws_B2[:, 0], prompts(m.batch)) for m in micros]
        count = None
        if len(micros) > 1:
            count = sum(language.count_targets(*row) for row in rows) / len(micros)
        for micro, row in zip(micros, rows, strict=True):
            given = shown(micro.batch)
            micro.seed()
            yield {"loss": language.loss(engine(*given), *row, count=count)}

    return losses
