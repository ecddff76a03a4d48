"""Folders of LLaVA's authors: a language model with the bridge among its weights, also as deltas.

``config.json`` names the image encoder (``mm_vision_tower``), which is not in the folder. The first
releases were deltas: each weight is the difference to the same weight of LLaMA.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.interchange.llava.bridges import PROJECTOR, bridge_names, open_weights, plain_bridge
from jobs.interchange.llava.parts import (
    LlavaParts,
    base_recipe,
    in_stored_formats,
    open_language,
    open_tower,
)
from jobs.interchange.parts import Frozen, check_language
from jobs.models.files import read_config
from jobs.models.tensors import (
    Lazy,
    Tensors,
    copy_small,
    published,
    write_folder,
    write_json,
)
from modeling.vision.features import FeatureConfig
from pipeline.pixels import CLIP_PIXELS

_IGNORED = ("model.vision_tower.", "rotary_emb.inv_freq")


def read_authors(folder: Path, encoder: str = "", base: str = "") -> LlavaParts:
    """Read a folder of the authors' code.

    Args:
        encoder: folder or hub id of the image encoder; empty: the one that the folder names.
        base: folder of the LLaMA to which the folder's weights are differences; empty: they are
            weights.

    Raises:
        ValueError: it is none, or damaged, the encoder cannot be found, or the base does not fit.
    """
    where, config = f"LLaVA folder {folder}", read_config(folder)
    if "mm_vision_tower" not in config:
        raise ValueError(
            f"{where}: its config.json has no mm_vision_tower; give a folder of the authors' code, "
            "or --from hf for one of Hugging Face's"
        )
    tensors = {
        name: lazy
        for name, lazy in open_weights(folder).items()
        if not any(part in name for part in _IGNORED)
    }
    names = bridge_names(tensors)
    if not names:
        raise ValueError(f"{where}: no mm_projector among its weights")
    bridge = {ours: tensors[theirs].read() for ours, theirs in names.items()}
    model, bridge = plain_bridge(bridge, where)
    words: Tensors = {n: t for n, t in tensors.items() if n not in names.values()}
    if base:
        words = add_base(words, open_language(base).tensors, f"{where} on {base}")
    own = {name: value for name, value in config.items() if not name.startswith("mm_")}
    language = Frozen(own | {"model_type": "llama"}, words, folder)
    check_language(language, where)
    tower = open_tower(encoder or config["mm_vision_tower"])
    recipe = in_stored_formats(_recipe(config, model, tower), tower, language)
    return LlavaParts(recipe, bridge, tower, language)


def _recipe(config: dict[str, Any], model: Any, tower: Frozen) -> Any:
    geometry: Any = "pad" if config.get("image_aspect_ratio") == "pad" else "crop"
    tokens: Any = "class" if config.get("mm_vision_select_feature") == "cls_patch" else "patches"
    features = FeatureConfig(config.get("mm_vision_select_layer", -2), "no", tokens)
    pixels = replace(CLIP_PIXELS, geometry=geometry)
    recipe = base_recipe(model, "v1", tower.config["image_size"], features, pixels)
    positions = config.get("max_position_embeddings", 2048)
    longest = min(recipe.language.max_text, positions)
    return replace(recipe, language=replace(recipe.language, max_text=longest))


def add_base(delta: Tensors, base: Tensors, where: str) -> Tensors:
    """Weights that were released as differences: delta and base added, in the delta's format.

    A word matrix may have more rows than the base's (words that were added); those stay as they
    are.

    Raises:
        ValueError: a weight that only one of them has, or of another shape.
    """
    lost = sorted(delta.keys() ^ base.keys())
    lost = [name for name in lost if not any(part in name for part in _IGNORED)]
    if lost:
        raise ValueError(f"{where}: {lost[0]} is in one of them alone; give the LLaMA of its size")
    result: Tensors = {}
    for name, lazy in delta.items():
        longer = lazy.shape[0] - base[name].shape[0]
        words = name in ("model.embed_tokens.weight", "lm_head.weight") and longer >= 0
        if lazy.shape[1:] != base[name].shape[1:] or (longer and not words):
            raise ValueError(
                f"{where}: {name} has shape {lazy.shape}, the base's is {base[name].shape}; give "
                "the LLaMA of its size"
            )
        result[name] = Lazy(lazy.shape, lazy.dtype, _sum(lazy, base[name]))
    return result


def _sum(delta: Lazy, base: Lazy) -> Any:
    def read() -> Tensor:
        total = delta.read().clone()
        known = base.read()
        total[: len(known)] += known.to(total.dtype)
        return total

    return read


def write_authors(parts: LlavaParts, out: Path) -> None:
    """Write a folder of the authors' code: the language model with the bridge among its weights.

    Raises:
        ValueError: ``out`` exists already.
    """
    recipe, files = parts.recipe, parts.language.files
    features = recipe.encoder.features
    tensors = dict(parts.language.tensors)
    tensors |= {name: Lazy.of(tensor) for name, tensor in named_bridge(parts).items()}
    config = parts.language.config | {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": recipe.encoder.name,
        "mm_projector_type": recipe.model.bridge,
        "mm_hidden_size": recipe.model.encoder_width,
        "mm_vision_select_layer": features.layer,
        "mm_vision_select_feature": "patch" if features.tokens == "patches" else "cls_patch",
        "image_aspect_ratio": "pad" if recipe.encoder.pixels.geometry == "pad" else "square",
        "use_mm_proj": True,
    }
    with published(out) as aside:
        aside.mkdir()
        if files is not None:
            inner = [path.name for path in files.iterdir() if path.is_dir()]
            copy_small(files, aside, (PROJECTOR, *inner))
        write_folder(aside, tensors, out.name)
        write_json(aside / "config.json", config)
        torch.save(named_bridge(parts), aside / PROJECTOR)


def named_bridge(parts: LlavaParts) -> dict[str, Tensor]:
    """The bridge by the authors' names: ``model.mm_projector.weight``, or ``.0.weight``, ``.2.``"""
    layers = {"linear_1": "", "linear_2": ""}
    if parts.recipe.model.bridge != "linear":
        layers = {"linear_1": "0.", "linear_2": "2."}
    named = {}
    for name, tensor in parts.bridge.items():
        layer, _, kind = name.removeprefix("bridge.").rpartition(".")
        named[f"model.mm_projector.{layers[layer]}{kind}"] = tensor.contiguous()
    return named
