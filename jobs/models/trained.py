"""Trained checkpoints of ours as modules, together with the frozen models that they need."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from cluster import checkpoint
from jobs import recipes
from jobs.models.bert import load_reader
from jobs.models.encoder_settings import with_older
from jobs.models.encoders import load_encoder
from jobs.models.files import dtype_of
from jobs.models.languages import Language, load_language
from jobs.models.missing_parts import find_checkpoint
from jobs.recipes.schema import Stage1Recipe, Stage2Recipe, TrainRecipe
from modeling.blip2 import Stage1, Stage1Config, Stage2, Stage2Config, WithEncoder
from modeling.vision.encoders import ImageEncoder, freeze

Recipe = Stage1Recipe | Stage2Recipe
RecipeT_co = TypeVar("RecipeT_co", bound=TrainRecipe, covariant=True)


@dataclass(frozen=True)
class Trained(Generic[RecipeT_co]):
    """A trained checkpoint as modules on one device, all in eval mode.

    Attributes:
        recipe: resolved recipe that it was trained with.
        step: number of updates that were made.
        encoder: image encoder; with the checkpoint's weights where it was finetuned.
        module: ``Stage1`` or ``Stage2`` with the checkpoint's weights.
        tokenizer: BERT's with ``[DEC]`` where the Q-Former reads text (stage 1, VQA), else None.
        language: frozen language model (stage 2), else None.
    """

    recipe: RecipeT_co
    step: int
    encoder: ImageEncoder
    module: Stage1 | Stage2
    tokenizer: Any = None
    language: Language | None = None


def load_trained(path: str | Path, device: torch.device | str = "cpu") -> Trained[Recipe]:
    """Load a checkpoint with its frozen models.

    Args:
        path: a run's folder or ``s3://`` URL, for its latest checkpoint, or one checkpoint's.

    Raises:
        ValueError: No checkpoint is there, it is damaged, or a frozen model is gone.
    """
    found = find_checkpoint(path)
    found.verify()
    recipe = read_recipe(found)
    finetuned = recipe.encoder.train
    encoder = load_encoder(recipe.encoder, weights=not finetuned)
    module = new_module(recipe.model)
    whole: nn.Module = WithEncoder(encoder, module) if finetuned else module
    checkpoint.load_weights(whole, found.trainable(), f"checkpoint {found.folder}")
    encoder.checkpoint_blocks(False)
    freeze(encoder, dtype_of(recipe.encoder.dtype))
    tokenizer, language = None, None
    if recipe.model.qformer.text:
        tokenizer = load_reader(recipe.tokenizer, recipe.model)
    if isinstance(recipe, Stage2Recipe):
        language = load_language(recipe.language)
        language.to(device)
    module.to(device).eval()
    return Trained(recipe, found.step, encoder.to(device), module, tokenizer, language)


def new_module(model: Stage1Config | Stage2Config) -> Stage1 | Stage2:
    """The stage of a configuration, with random weights, on torch's current device."""
    return Stage1(model) if isinstance(model, Stage1Config) else Stage2(model)


def read_recipe(found: checkpoint.Checkpoint) -> Recipe:
    """The typed recipe of a checkpoint.

    Raises:
        ValueError: It is not the recipe of a training stage, or has unknown fields.
    """
    kinds: dict[Any, type[Recipe]] = {"stage1": Stage1Recipe, "stage2": Stage2Recipe}
    kind = found.recipe.get("kind")
    if kind not in kinds:
        raise ValueError(f"checkpoint {found.folder}: kind {kind!r} is none of {list(kinds)}")
    recipe = recipes.from_dict(kinds[kind], with_older(found.recipe), f"checkpoint {found.folder}")
    return _with_own_models(recipe, found.folder)


def _with_own_models(recipe: Recipe, folder: Path) -> Recipe:
    """Names that begin with ``./`` mean folders inside the checkpoint (``jobs/convert.py``)."""
    absolute = folder.absolute()

    def place(name: str) -> str:
        return str(absolute / name) if name.startswith("./") else name

    encoder = replace(recipe.encoder, name=place(recipe.encoder.name))
    recipe = replace(recipe, encoder=encoder, tokenizer=place(recipe.tokenizer))
    if isinstance(recipe, Stage1Recipe):
        return recipe
    return replace(recipe, language=replace(recipe.language, name=place(recipe.language.name)))
