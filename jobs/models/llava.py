"""LLaVA's language models, to be trained or frozen, and its trained checkpoints as modules."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cluster import checkpoint
from jobs import recipes
from jobs.models.digests import weights_digest
from jobs.models.encoder_settings import with_older
from jobs.models.encoders import load_encoder
from jobs.models.files import dtype_of, find_folder, readable
from jobs.models.languages import checked_config, stored_as
from jobs.models.missing_parts import check_tokenizer, find_checkpoint
from jobs.recipes.schema import LanguageChoice, LlavaRecipe
from modeling.language.text import check_words
from modeling.llava import Llava
from modeling.vision.encoders import ImageEncoder, freeze

KIND = "llava"


@dataclass(frozen=True)
class TrainedLlava:
    """A LLaVA checkpoint as modules on one device, all in eval mode.

    Attributes:
        recipe: resolved recipe that it was trained with.
        step: number of updates that were made.
        encoder: image encoder.
        module: the bridge, without the language model.
        language: language model, from transformers; with the checkpoint's weights where it trained.
        tokenizer: its tokenizer.
    """

    recipe: LlavaRecipe
    step: int
    encoder: ImageEncoder
    module: Llava
    language: Any
    tokenizer: Any


def load_trained(path: str | Path, device: torch.device | str = "cpu") -> TrainedLlava:
    """Load a checkpoint of either stage with its models.

    Args:
        path: a run, for its latest checkpoint, or one checkpoint's folder.

    Raises:
        ValueError: No checkpoint of LLaVA is there, it is damaged, or a model is gone or is not the
            one that the bridge was trained with.
    """
    found = find_checkpoint(path)
    found.verify()
    recipe = read_recipe(found)
    weights, where = found.trainable(), f"checkpoint {found.where}"
    encoder = load_encoder(recipe.encoder)
    bridge = {name: t for name, t in weights.items() if name.startswith("bridge.")}
    module = Llava(recipe.model)
    checkpoint.load_weights(module, bridge, where)
    _check_model(encoder, recipe.made_for.encoder, where, recipe.encoder.name)
    if recipe.stage == 1:
        language = load_decoder(recipe.language, trained=False)
        _check_model(language, recipe.made_for.language, where, recipe.language.name)
    else:
        prefix = "language."
        state = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
        language = filled_decoder(recipe.language, state)
    return TrainedLlava(
        recipe,
        found.step,
        encoder.to(device),
        module.to(device).eval(),
        freeze(language).to(device),
        load_words(recipe.language),
    )


def read_recipe(found: checkpoint.Checkpoint) -> LlavaRecipe:
    """The typed recipe of a checkpoint; names that begin with ``./`` are folders inside it.

    Raises:
        ValueError: It is not LLaVA's, or has unknown fields.
    """
    if found.recipe.get("kind") != KIND:
        raise ValueError(f"checkpoint {found.where}: kind {found.recipe.get('kind')!r}, not llava")
    where = f"checkpoint {found.folder}"
    recipe: LlavaRecipe = recipes.from_dict(LlavaRecipe, with_older(found.recipe), where)
    inside = found.folder.absolute()

    def place(name: str) -> str:
        return str(inside / name) if name.startswith("./") else name

    encoder = replace(recipe.encoder, name=place(recipe.encoder.name))
    language = replace(recipe.language, name=place(recipe.language.name))
    return replace(recipe, encoder=encoder, language=language)


def _check_model(model: Any, expected: str, where: str, name: str) -> None:
    """Refuse a model that is not the one that the bridge was trained with."""
    if expected and weights_digest(model) != expected:
        raise ValueError(
            f"{where}: its bridge was trained with other weights than those of {name} "
            f"(digest {expected[:12]}); give that model under this name"
        )


def filled_decoder(choice: LanguageChoice, state: dict[str, torch.Tensor]) -> Any:
    """A decoder with given weights in ``choice.dtype``; of its folder only the sizes are read.

    Raises:
        ValueError: There is no such folder, or the weights are not those of such a model.
    """
    folder = find_folder("language model", choice.name, weights=False)
    config: Any = checked_config(choice, folder)
    with torch.device("meta"):
        outline: Any = AutoModelForCausalLM.from_config(config)
    own = {name: tuple(parameter.shape) for name, parameter in outline.named_parameters()}
    if own != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        raise ValueError(
            f"language model {choice.name!r}: the checkpoint's weights are of another model"
        )
    dtype = dtype_of(choice.dtype)
    return type(outline).from_pretrained(None, config=config, state_dict=state, dtype=dtype)


def load_decoder(choice: LanguageChoice, trained: bool) -> Any:
    """A decoder language model: as it is stored where it trains, else in ``choice.dtype``.

    One that trains has no dropout, as LLaMA has none, so that a step does not depend on how its
    samples are divided among ranks.

    Raises:
        ValueError: There is no such folder or hub id, or it holds no decoder.
    """
    folder = find_folder("language model", choice.name)
    checked_config(choice, folder)
    with readable("language model", choice.name):
        if not trained:
            dtype = dtype_of(choice.dtype)
            return AutoModelForCausalLM.from_pretrained(stored_as(folder, dtype), dtype=dtype)
        config: Any = AutoConfig.from_pretrained(folder)
        for name, value in vars(config).items():
            if "drop" in name and isinstance(value, float):
                setattr(config, name, 0.0)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype="auto")
    model.config.use_cache = False
    return model.train().requires_grad_(True)


def load_words(choice: LanguageChoice) -> Any:
    """The tokenizer of a language model.

    Raises:
        ValueError: There is none, or it has words that the model lacks.
    """
    folder = find_folder("language model", choice.name, weights=False)
    check_tokenizer("language model", folder)
    with readable("language model", choice.name):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        config: Any = AutoConfig.from_pretrained(folder)
    check_words(tokenizer, config.get_text_config().vocab_size, f"language model {choice.name!r}")
    return tokenizer


def max_positions(choice: LanguageChoice) -> int:
    """Positions of a language model; a billion where its configuration names no limit."""
    folder = find_folder("language model", choice.name, weights=False)
    config = checked_config(choice, folder).get_text_config()
    return getattr(config, "max_position_embeddings", None) or 10**9
