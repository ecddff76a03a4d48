"""The recipe of a checkpoint that came without one: a recipe of ours around its weights."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar, get_args

import torch

from jobs import recipes
from jobs.interchange.instruct import instructed
from jobs.interchange.parts import Frozen, Options, language_outline
from jobs.models.files import find_folder, local_folder, local_path, read_config
from jobs.models.fingerprint import fingerprint
from jobs.models.languages import open_weights
from jobs.models.tensors import Tensors
from jobs.models.trained import Recipe
from jobs.recipes.pretrain import BERT
from jobs.recipes.schema import (
    EncoderChoice,
    LanguageChoice,
    Stage1Recipe,
    Stage2Recipe,
    TrainRecipe,
)
from modeling.blip2 import Stage1Config, Stage2Config
from modeling.precision import DTYPES
from modeling.vision.features import PAPER
from pipeline.pixels import CLIP_PIXELS
from pipeline.text_processors import TextRule

RecipeT = TypeVar("RecipeT", bound=TrainRecipe)
SHORT: dict[torch.dtype, Any] = {dtype: name for name, dtype in DTYPES.items()}
"""Names of number formats in a recipe."""


def build_recipe(
    model: Stage1Config | Stage2Config,
    options: Options,
    encoder: Frozen | None,
    language: Frozen | None,
    tokenizer: bool = False,
    *,
    lavis: bool = False,
) -> Recipe:
    """The recipe of a checkpoint of another project.

    Args:
        model: configuration of the trained weights.
        options: the user's additions: a recipe's name, names of frozen models.
        encoder: the image encoder, if the checkpoint holds it.
        language: the language model, if the checkpoint holds it.
        tokenizer: whether the checkpoint holds the Q-Former's tokenizer.
        lavis: whether it is a file of LAVIS, whose code changes FlanT5's activation.

    Raises:
        ValueError: A frozen model is neither in the checkpoint nor named, or the recipe's name is
            wrong.
    """
    max_text = run_fields(options.config)[0].get("max_text")
    if isinstance(model, Stage1Config):
        first: Stage1Recipe = base_recipe("stage1", options.recipe)
        first = _with_shared(first, options, encoder, tokenizer)
        return replace(first, model=model, max_text=max_text or first.max_text)
    config = _language_config(options, language)
    pair = bool(config) and language_outline(config).config.is_encoder_decoder
    second: Stage2Recipe = base_recipe("stage2", options.recipe, bool(pair))
    second = _with_shared(second, options, encoder, tokenizer)
    if model.qformer.text and not second.tokenizer:
        second = replace(second, tokenizer=BERT)
    if model.qformer.text and not options.recipe:
        second = replace(second, model=model)
        second = instructed(second, config.get("model_type", ""), activation=lavis)
    choice = _language_choice(second.language, options, language)
    choice = replace(choice, max_text=max_text or choice.max_text)
    return replace(second, model=model, language=choice)


def base_recipe(kind: str, name: str, encoder_decoder: bool = False) -> Any:
    """The recipe that fills in the settings that weights do not show.

    Args:
        kind: ``stage1`` or ``stage2``.
        name: name of a recipe; empty: the paper's, under the name ``converted``.
        encoder_decoder: whether the language model is one (FlanT5) rather than a decoder (OPT).

    Raises:
        ValueError: ``name`` is a recipe of the other stage, or of none.
    """
    default = {"stage1": "vit-g", "stage2": "vit-g-flant5-xl" if encoder_decoder else ""}[kind]
    name_or_default = name or default or "vit-g-opt-2.7b"
    other = "stage2" if kind == "stage1" else "stage1"
    if name in recipes.names(other) and name not in recipes.names(kind):
        raise ValueError(
            f"--recipe {name!r} is of {other}, but the checkpoint is of {kind}; choose one of "
            f"{', '.join(recipes.names(kind))}"
        )
    base = recipes.recipe(kind, name_or_default)
    return base if name else replace(base, name="converted")


def run_fields(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate a run's fields (image size, text length and rule, encoder heads) from a model's.

    Returns:
        The run's fields under our names, and all the others as they were given.

    Raises:
        ValueError: A field of the run has a value that is not allowed.
    """
    synonyms = {
        **dict.fromkeys(("image_size", "img_size"), "image_size"),
        **dict.fromkeys(("max_text", "max_txt_len"), "max_text"),
        "encoder_heads": "encoder_heads",
        "text": "text",
    }
    run = {synonyms[name]: value for name, value in config.items() if name in synonyms}
    rules = get_args(TextRule)
    for name, value in run.items():
        if name == "text" and value not in rules:
            raise ValueError(f"--config: text = {value!r}; choose {' or '.join(rules)}")
        if name != "text" and (not isinstance(value, int) or value < 1):
            raise ValueError(f"--config: {name} = {value!r} must be a whole number above 0")
    return run, {name: value for name, value in config.items() if name not in synonyms}


def _with_shared(
    base: RecipeT, options: Options, encoder: Frozen | None, tokenizer: bool
) -> RecipeT:
    """The base with the encoder, tokenizer and text rule of the checkpoint."""
    run, _ = run_fields(options.config)
    choice = _encoder_choice(base.encoder, options, encoder)
    choice = replace(choice, image_size=run.get("image_size", choice.image_size))
    # The models of both formats were trained on CLIP's pixels and the paper's features.
    choice = replace(choice, pixels=CLIP_PIXELS, features=PAPER)
    transform = replace(base.run.transform, size=choice.image_size)
    return replace(
        base,
        encoder=choice,
        run=replace(base.run, transform=transform),
        tokenizer="./tokenizer" if tokenizer else options.tokenizer or base.tokenizer,
        bert="",  # the Q-Former's weights are here
        text=run.get("text", base.text),
    )


def _encoder_choice(base: EncoderChoice, options: Options, own: Frozen | None) -> EncoderChoice:
    if own is not None:
        size, dtype = own.config["image_size"], SHORT[_main_dtype(own.tensors)]
        return replace(base, name="./encoder", image_size=size, dtype=dtype)
    if not options.encoder and not options.recipe:
        raise ValueError(
            "the checkpoint does not hold its frozen image encoder; name it: --recipe NAME, or "
            "--encoder FOLDER (a Hugging Face folder, a hub id, timm:NAME)"
        )
    name = options.encoder or base.name
    if not options.recipe and local_path(name) is not None and not name.endswith((".pth", ".pt")):
        # No recipe says its image size: it is the one that it was trained at.
        config = read_config(find_folder("encoder", name))
        size = config.get("vision_config", config).get("image_size", base.image_size)
        base = replace(base, image_size=size)
    return replace(base, name=name)


def _language_choice(base: LanguageChoice, options: Options, own: Frozen | None) -> LanguageChoice:
    if own is not None:
        dtype = SHORT[_main_dtype(own.tensors)]
        if own.config.get("model_type") == "t5" and dtype == "fp16":
            dtype = "bf16"  # T5 overflows in fp16
        return replace(base, name="./language", dtype=dtype, digest=fingerprint(own.tensors))
    if not options.language and not options.recipe:
        raise ValueError(
            "the checkpoint does not hold its frozen language model; name it: --recipe NAME, or "
            "--language FOLDER (a Hugging Face folder or a hub id)"
        )
    base = replace(base, name=options.language or base.name)
    folder = local_folder(base.name)
    return base if folder is None else replace(base, digest=fingerprint(open_weights(folder)))


def _language_config(options: Options, own: Frozen | None) -> Mapping[str, Any]:
    """The language model's ``config.json``; empty where it is not on this machine."""
    if own is not None:
        return own.config
    folder = local_folder(options.language) if options.language else None
    return read_config(folder) if folder is not None else {}


def _main_dtype(tensors: Tensors) -> torch.dtype:
    """The dtype of most of a model's numbers."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + torch.Size(tensor.shape).numel()
    best = max(sizes, key=lambda dtype: sizes[dtype])
    return best if best in SHORT else torch.float32
