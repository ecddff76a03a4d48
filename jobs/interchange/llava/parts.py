"""A LLaVA checkpoint of any format in one common form, and its parts as modules."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from jobs.interchange.parts import Frozen
from jobs.interchange.recipe import SHORT
from jobs.models.files import dtype_of, find_folder, read_config
from jobs.models.llava import TrainedLlava
from jobs.models.tensors import Tensors, open_folder
from jobs.recipes.llava import GRID, llava_1_5_7b, llava_7b
from jobs.recipes.schema import EncoderChoice, LlavaRecipe
from modeling.llava import Llava, LlavaConfig
from modeling.vision.encoders import build_clip_encoder, freeze
from modeling.vision.features import FeatureConfig
from pipeline.pixels import CLIP_PIXELS, PixelConfig

CLIP = "clip_vision_model"
TOWER = "vision_model."
ENCODER, LANGUAGE = "./encoder", "./language"


@dataclass(frozen=True)
class LlavaParts:
    """A LLaVA checkpoint of any format.

    Attributes:
        recipe: recipe with the settings of its models; ``stage`` is 1, since the language model is
            a part of its own.
        bridge: weights of the bridge by our names, in the number formats that they came in.
        encoder: CLIP tower; the names of its weights have no prefix (``embeddings. …``).
        language: language model, with its tokenizer in ``files``.
        huggingface: folder of Hugging Face's whose small files it came with; None: other origin.
        tower: what stands in front of the names of the tower's weights there.
    """

    recipe: LlavaRecipe
    bridge: dict[str, Tensor]
    encoder: Frozen
    language: Frozen
    huggingface: Path | None = None
    tower: str = "vision_tower."

    def load(self, device: torch.device | str = "cpu") -> TrainedLlava:
        """The parts as modules."""
        recipe = self.recipe
        choice = recipe.encoder
        config: Any = AutoConfig.for_model(**self.encoder.config)
        state = {name: lazy.read() for name, lazy in self.encoder.tensors.items()}
        encoder = build_clip_encoder(config, choice.image_size, state, features=choice.features)
        module = Llava(recipe.model)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(self.bridge[name])
        assert self.language.files is not None
        text: Any = AutoConfig.for_model(**self.language.config)
        words = {name: lazy.read() for name, lazy in self.language.tensors.items()}
        outline: Any = AutoModelForCausalLM
        with torch.device("meta"):
            kind = type(outline.from_config(text))
        dtype = dtype_of(recipe.language.dtype)
        language = kind.from_pretrained(None, config=text, state_dict=words, dtype=dtype)
        return TrainedLlava(
            recipe,
            0,
            freeze(encoder, dtype_of(choice.dtype)).to(device),
            module.to(device).eval(),
            freeze(language).to(device),
            AutoTokenizer.from_pretrained(self.language.files),
        )


def base_recipe(
    model: LlavaConfig,
    layout: str,
    size: int,
    features: FeatureConfig = GRID,
    pixels: PixelConfig | None = None,
) -> LlavaRecipe:
    """A recipe of ours around a foreign checkpoint's models, which lie inside the checkpoint."""
    made = (llava_7b if model.bridge == "linear" else llava_1_5_7b)(2)
    pixels = pixels or replace(CLIP_PIXELS, geometry=made.encoder.pixels.geometry)
    encoder = EncoderChoice(ENCODER, size, "auto", features=features, pixels=pixels)
    run = replace(made.run, transform=replace(made.run.transform, size=size))
    language = replace(made.language, name=LANGUAGE, dtype="auto")
    return replace(
        made,
        name="llava",
        stage=1,
        encoder=encoder,
        language=language,
        model=model,
        run=run,
        layout=layout,
    )


def in_stored_formats(recipe: LlavaRecipe, encoder: Frozen, language: Frozen) -> LlavaRecipe:
    """The recipe with the number formats in which its models' files hold most of their weights."""
    seen, said = SHORT[stored_format(encoder)], SHORT[stored_format(language)]
    return replace(
        recipe,
        encoder=replace(recipe.encoder, dtype=seen),
        language=replace(recipe.language, dtype=said),
    )


def stored_format(frozen: Frozen) -> torch.dtype:
    """The number format of most of a model's bytes."""
    sizes: dict[torch.dtype, int] = {}
    for lazy in frozen.tensors.values():
        sizes[lazy.dtype] = sizes.get(lazy.dtype, 0) + lazy.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype])


def open_tower(name: str) -> Frozen:
    """The vision tower of a CLIP folder, whole or alone.

    Raises:
        ValueError: there is no such folder, or it is of another family.
    """
    folder = find_folder("encoder", name)
    config, tensors = read_config(folder), open_folder(folder)
    config = {"model_type": config.get("model_type")} | config.get("vision_config", config)
    if config["model_type"] not in ("clip", CLIP):
        raise ValueError(
            f"encoder {name!r} is a {config['model_type']!r} model; Hugging Face's LLaVA and the "
            "authors' take a CLIP tower"
        )
    return Frozen(config | {"model_type": CLIP}, tower_weights(tensors), folder)


def tower_weights(tensors: Tensors) -> Tensors:
    """The weights of a CLIP's vision tower without a prefix."""
    named = {n.removeprefix(TOWER): lazy for n, lazy in tensors.items() if n.startswith(TOWER)}
    return named or {n: lazy for n, lazy in tensors.items() if not n.startswith("text_model.")}


def open_language(name: str) -> Frozen:
    """A language model's folder.

    Raises:
        ValueError: there is none.
    """
    folder = find_folder("language model", name)
    return Frozen(read_config(folder), open_folder(folder), folder)
