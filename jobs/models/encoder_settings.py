"""Settings that an encoder's own files decide: image size, preparation of pixels, features.

A recipe leaves them open. They are settled before a run starts, and its checkpoints hold them.
docs/encoders.md has the table.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import timm
from transformers import AutoConfig

from cluster import checkpoint
from jobs import recipes
from jobs.models import image_processors
from jobs.models.files import find_folder, is_hub_id, local_folder, readable
from jobs.models.image_processors import ImageProcessor
from jobs.recipes.schema import EncoderChoice, TrainRecipe
from modeling.vision import features
from modeling.vision.features import PAPER, FeatureConfig
from pipeline.pixels import CLIP_PIXELS, PixelConfig

OF_BLIP2 = ("clip_vision_model", "blip_2_vision_model")
"""Types of the paper's towers: the reference squashes a whole image to a square for them."""
RecipeT = TypeVar("RecipeT", bound=TrainRecipe)


def settled(
    recipe: RecipeT, before: Mapping[str, Any] | None = None, fetch: bool = True
) -> RecipeT:
    """The recipe with its encoder's pixels and features settled.

    Args:
        before: recipe, as JSON has it, of the checkpoint that the run starts from or resumes; its
            settings stand where the command gives no others.
        fetch: False: leave an encoder unsettled that is yet to be fetched from the hub.

    Raises:
        ValueError: There is no such encoder, or its files do not state its pixels.
    """
    choice = recipe.encoder
    if not fetch and not is_here(choice.name):
        return recipe
    if before is not None:
        choice = _as_before(choice, with_older(before).get("encoder", {}))
    choice = replace(choice, features=features_of(choice), pixels=pixels_of(choice))
    assert choice.pixels.interpolation != "auto"
    transform = replace(recipe.run.transform, interpolation=choice.pixels.interpolation)
    return replace(recipe, encoder=choice, run=replace(recipe.run, transform=transform))


def describe(choice: EncoderChoice) -> str:
    """A line about an encoder's settled settings, for the person who starts a run."""
    pixels, taken = choice.pixels, choice.features
    mean, std = (", ".join(f"{value:g}" for value in three) for three in (pixels.mean, pixels.std))
    margin = f" of {pixels.resize_to}" if pixels.resize_to else ""
    return (
        f"encoder {choice.name}: {choice.image_size}{margin} px {pixels.geometry} "
        f"{pixels.interpolation}, mean ({mean}), std ({std}); block {taken.layer}, "
        f"norm {taken.norm}, tokens {taken.tokens}"
    )


def is_here(name: str) -> bool:
    """Whether an encoder's settings can be read without the hub."""
    return name.startswith("timm:") or local_folder(name) is not None or not is_hub_id(name)


# -------------------------------------------------------------------------------- checkpoints


def with_older(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's ``recipe.json``, with the encoder settings of older versions where it has
    none: CLIP's pixels, and all tokens before the last block.
    """
    encoder = dict(recipe.get("encoder", {}))
    if not encoder:
        return dict(recipe)
    encoder.setdefault("pixels", asdict(CLIP_PIXELS))
    encoder.setdefault("features", asdict(PAPER))
    return {**recipe, "encoder": encoder}


def of_init(init: str) -> dict[str, Any] | None:
    """The recipe, as JSON has it, of the last checkpoint that ``--init`` names; None where that is
    not one of ours. A path without any checkpoint is refused later, where its weights are read.
    """
    path = init.rpartition(",")[2]
    if not path:
        return None
    try:
        return checkpoint.find(path).recipe
    except ValueError:
        return None


def _as_before(choice: EncoderChoice, before: Mapping[str, Any]) -> EncoderChoice:
    """The choice with the checkpoint's values for its open settings."""
    if not before:
        return choice
    then = recipes.from_dict(EncoderChoice, dict(before), "checkpoint")
    pixels = then.pixels
    if pixels.resize_to and then.image_size:
        old = ImageProcessor(then.image_size, pixels)
        pixels = old.at(choice.image_size or then.image_size)
    return replace(
        choice,
        features=choice.features.settle(then.features),
        pixels=_merge(choice.pixels, pixels),
    )


# ------------------------------------------------------------------------------ pixels


def pixels_of(choice: EncoderChoice) -> PixelConfig:
    """The preparation of an encoder's images: the recipe's, else the one in the model's files.

    Raises:
        ValueError: Neither states it; the message names the options that do.
    """
    given = choice.pixels
    if given.settled:
        return given
    processor = own_processor(choice)
    if processor is None:
        if not (given.mean and given.std):
            raise ValueError(
                f"encoder {choice.name!r} does not say how its images are normalised (no "
                f"{image_processors.FILES[0]}, no pretrained_cfg): save its image processor with "
                "it, or give --encoder.pixels.mean R G B and --encoder.pixels.std R G B"
            )
        return _merge(given, CLIP_PIXELS)
    pixels = _merge(given, processor.at(choice.image_size or processor.size))
    for name, complaint in image_processors.UNSUPPORTED.items():
        if getattr(pixels, name) == "auto":
            raise ValueError(
                f"encoder {choice.name!r}: {complaint}; choose with --encoder.pixels.{name}"
            )
    return pixels


def _merge(given: PixelConfig, own: PixelConfig) -> PixelConfig:
    """The given settings, and the model's own for the open ones; its margin belongs to its
    geometry.
    """
    geometry = own.geometry if given.geometry == "auto" else given.geometry
    margin = own.resize_to if geometry == own.geometry else 0
    return PixelConfig(
        given.mean or own.mean,
        given.std or own.std,
        own.interpolation if given.interpolation == "auto" else given.interpolation,
        geometry,
        given.resize_to or margin,
        own.resize_by if given.resize_by == "auto" else given.resize_by,
    )


def own_processor(choice: EncoderChoice) -> ImageProcessor | None:
    """The preparation that the model's own files state; None where they state none.

    CLIP, EVA-CLIP and BLIP-2 get the reference's geometry; and CLIP's constants, their processors'
    defaults, where a folder or the reference's ``.pth`` states none.

    Raises:
        ValueError: There is no such encoder, or its preparation is not supported.
    """
    name = choice.name
    if name.startswith("timm:"):
        return _of_timm(name.removeprefix("timm:"))
    if name.endswith((".pth", ".pt")):
        return ImageProcessor(224, CLIP_PIXELS)
    folder = find_folder("encoder", name, weights=False)
    vision = vision_config(folder, name)
    if vision.model_type == "timm_wrapper":
        return _of_timm(vision.architecture, vision.pretrained_cfg)
    processor = image_processors.read_huggingface(folder)
    if vision.model_type not in OF_BLIP2:
        return processor
    return _as_reference(processor or ImageProcessor(vision.image_size, CLIP_PIXELS))


def _of_timm(name: str, config: Any = None) -> ImageProcessor | None:
    if config is None and timm.is_model(name):
        known = timm.get_pretrained_cfg(name)
        config = known.to_dict() if known is not None else None
    if not config or not config.get("mean"):
        return None
    processor = image_processors.of_timm(config, f"encoder 'timm:{name}'")
    return _as_reference(processor) if features.of_timm(name) == PAPER else processor


def _as_reference(processor: ImageProcessor) -> ImageProcessor:
    pixels = replace(processor.pixels, geometry="squash", resize_to=0, resize_by="torch")
    return replace(processor, pixels=pixels)


def own_size(choice: EncoderChoice) -> int:
    """Side in pixels of the images that an encoder was trained on.

    Raises:
        ValueError: There is no such encoder, or its files do not state the size.
    """
    processor = own_processor(choice)
    if processor is not None:
        return processor.size
    if not choice.name.startswith("timm:"):
        folder = find_folder("encoder", choice.name, weights=False)
        size = getattr(vision_config(folder, choice.name), "image_size", None)
        if isinstance(size, int):
            return size
    raise ValueError(f"encoder {choice.name!r} does not say its size: give --encoder.image-size")


# ---------------------------------------------------------------------------- features


def features_of(choice: EncoderChoice) -> FeatureConfig:
    """Block, norm and tokens of the features: the recipe's, else its encoder family's.

    Raises:
        ValueError: There is no such encoder.
    """
    name = choice.name
    if name.startswith("timm:"):
        return choice.features.settle(features.of_timm(name.removeprefix("timm:")))
    if name.endswith((".pth", ".pt")):
        return choice.features.settle(PAPER)
    vision = vision_config(find_folder("encoder", name, weights=False), name)
    if vision.model_type == "timm_wrapper":
        return choice.features.settle(features.of_timm(vision.architecture))
    return choice.features.settle(features.of_huggingface(vision.model_type))


def vision_config(folder: Path, name: str) -> Any:
    """The configuration of a Hugging Face folder's vision tower.

    Raises:
        ValueError: There is none, or transformers does not know the model.
    """
    with readable("encoder", name):
        config = AutoConfig.from_pretrained(folder)
    return getattr(config, "vision_config", config)
