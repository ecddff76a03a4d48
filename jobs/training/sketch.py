"""A recipe's models on the meta device: their sizes, without weights or memory.

The sizes of a frozen model come from its folder or, for the paper's, from
``jobs.recipes.published``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from jobs.models.encoders import load_encoder
from jobs.models.files import local_path
from jobs.models.trained import new_module
from jobs.recipes import published
from jobs.recipes.schema import (
    EncoderChoice,
    LlavaRecipe,
    SpeakingRecipe,
    Stage2Recipe,
    TrainRecipe,
)
from modeling import flops
from modeling.blip2 import Stage1, Stage2
from modeling.llava import Llava, LlavaConfig
from modeling.vision.encoders import ImageEncoder, build_clip_encoder
from modeling.vision.features import PAPER


@dataclass(frozen=True)
class Sketch:
    """A recipe's models without weights; None where a model's sizes are not to be had.

    Attributes:
        stage: what trains, without an encoder or a language model that trains too.
    """

    stage: Stage1 | Stage2 | Llava
    encoder: ImageEncoder | None
    language: Any


def sketch(recipe: TrainRecipe) -> Sketch:
    """The recipe's models on the meta device."""
    with torch.device("meta"):
        model = recipe.model
        stage = Llava(model) if isinstance(model, LlavaConfig) else new_module(model)
        language = _language(recipe.language.name) if isinstance(recipe, SpeakingRecipe) else None
        return Sketch(stage, _encoder(recipe.encoder), language)


def trainable(recipe: TrainRecipe, sketched: Sketch) -> dict[str, int]:
    """Parameters that train, by part."""
    llava = isinstance(recipe, LlavaRecipe)
    parts = {"bridge" if llava else "Q-Former and heads": _count(sketched.stage)}
    if language_trains(recipe):
        parts["language model"] = _count(sketched.language)
    if recipe.encoder.train:
        parts["encoder"] = _count(sketched.encoder)
    return parts


def frozen_models(recipe: TrainRecipe, sketched: Sketch) -> dict[str, int]:
    """Parameters that do not, by part."""
    parts = {} if recipe.encoder.train else {"encoder": _count(sketched.encoder)}
    if isinstance(recipe, SpeakingRecipe) and not language_trains(recipe):
        parts["language model"] = _count(sketched.language)
    return parts


def language_trains(recipe: TrainRecipe) -> bool:
    """Whether the language model is a part of what trains."""
    return isinstance(recipe, LlavaRecipe) and recipe.stage == 2


def image_tokens(sketched: Sketch) -> int:
    return sketched.encoder.num_tokens if sketched.encoder is not None else 257


def text_lengths(recipe: Stage2Recipe, sketched: Sketch) -> tuple[float, float]:
    """Tokens given to the language model and tokens learned, of a text of full length."""
    assert sketched.language is not None
    queries, text = recipe.model.qformer.queries, recipe.language.max_text
    if recipe.language.max_prompt:  # instruction tuning
        return queries + recipe.language.max_prompt, text
    if recipe.prompt:
        question = recipe.max_question if "{}" in recipe.prompt else 0
        return queries + len(recipe.prompt.split()) + question, text
    if not sketched.language.config.is_encoder_decoder:
        return queries, text
    prefix, suffix = flops.split_text(text)
    return queries + prefix, suffix


def _encoder(choice: EncoderChoice) -> ImageEncoder | None:
    """The encoder from its own folder, else from the paper's sizes; None where neither is there."""
    if choice.name.startswith("timm:") or local_path(choice.name) is not None:
        return load_encoder(choice, weights=False)
    if choice.name in published.VISION:
        taken = choice.features.settle(PAPER)
        return build_clip_encoder(
            published.VISION[choice.name](), choice.image_size, features=taken
        )
    return None


def _language(name: str) -> Any:
    folder = local_path(name)
    if folder is None and name not in published.LANGUAGE:
        return None
    config = published.LANGUAGE[name]() if folder is None else AutoConfig.from_pretrained(folder)
    family: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = family.from_config(config)
    if not getattr(config, "scale_decoder_outputs", True):  # FlanT5's head is a matrix of its own
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


def _count(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else 0
