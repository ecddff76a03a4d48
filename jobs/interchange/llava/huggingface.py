"""Folders of Hugging Face's LLaVA, read and written.

A linear bridge has its exact place there: a linear activation, and the identity as second map. The
folder that another project saved comes back byte for byte, since its small files are kept. One that
is made anew has a row for ``<image>`` in the language model's word matrices; ``isthmus.json`` says
so, and the row is taken away again in reading.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    GenerationConfig,
    LlavaConfig,
    LlavaImageProcessor,
    LlavaProcessor,
)

from jobs.interchange.image_token import add_rows, strip_rows
from jobs.interchange.llava.bridges import plain_bridge
from jobs.interchange.llava.parts import (
    CLIP,
    TOWER,
    LlavaParts,
    base_recipe,
    in_stored_formats,
    stored_format,
)
from jobs.interchange.parts import Frozen, check_language
from jobs.models import image_processors
from jobs.models.files import read_config
from jobs.models.tensors import (
    Lazy,
    Tensors,
    copy_small,
    open_folder,
    published,
    read_json,
    write_folder,
    write_json,
)
from modeling.vision.features import FeatureConfig

NOTE, FILES = "isthmus.json", "isthmus"
PROJECTOR, ENCODER, LANGUAGE = "multi_modal_projector.", "vision_tower.", "language_model."
_TOKENS = {"default": "patches", "full": "class"}


def is_llava(folder: Path) -> bool:
    """Whether a Hugging Face folder is LLaVA's."""
    return read_config(folder).get("model_type") == "llava" and not _is_authors(folder)


def _is_authors(folder: Path) -> bool:
    return "mm_vision_tower" in read_config(folder)


def read_folder(folder: Path) -> LlavaParts:
    """Read a folder of Hugging Face's LLaVA.

    Raises:
        ValueError: it is damaged, or has a part that ours has no place for.
    """
    where, config, tensors = (
        f"Hugging Face folder {folder}",
        read_config(folder),
        open_folder(folder),
    )
    _check(config, where)
    bridge = {
        f"bridge.{name.removeprefix(PROJECTOR)}": lazy.read()
        for name, lazy in tensors.items()
        if name.startswith(PROJECTOR)
    }
    model, bridge = plain_bridge(bridge, where, config.get("projector_hidden_act", "gelu"))
    note = read_json(folder / NOTE, "sidecar") if (folder / NOTE).is_file() else {}
    tower = ENCODER + TOWER if any(n.startswith(ENCODER + TOWER) for n in tensors) else ENCODER
    encoder = Frozen({**config["vision_config"], "model_type": CLIP}, _part(tensors, tower))
    language = _language(folder, config, _part(tensors, LANGUAGE), note.get("rows", 0), where)
    known = len(_part(tensors, tower)) + len(_part(tensors, LANGUAGE))
    if known + sum(name.startswith(PROJECTOR) for name in tensors) != len(tensors):
        raise ValueError(f"{where}: it has weights that are no part of LLaVA")
    processor = image_processors.read_huggingface(folder)
    size = config["vision_config"].get("image_size", 336)
    features = FeatureConfig(
        config.get("vision_feature_layer", -2),
        "no",
        _TOKENS[config.get("vision_feature_select_strategy", "default")],  # type: ignore[arg-type]
    )
    pixels = processor.checked().at(size) if processor is not None else None
    recipe = base_recipe(model, note.get("layout", "v1"), size, features, pixels)
    positions = config["text_config"].get("max_position_embeddings", 2048)
    longest = min(recipe.language.max_text, positions)
    recipe = replace(recipe, language=replace(recipe.language, max_text=longest))
    recipe = in_stored_formats(recipe, encoder, language)
    return LlavaParts(recipe, bridge, encoder, language, folder, tower)


def _check(config: dict[str, Any], where: str) -> None:
    """Refuse what ours has no place for."""
    if config.get("model_type") != "llava":
        raise ValueError(f"{where}: a {config.get('model_type')!r} model; give one of LLaVA")
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int) or layer >= 0:
        raise ValueError(
            f"{where}: vision_feature_layer {layer}: one layer counted from the end is supported"
        )
    if not config.get("multimodal_projector_bias", True):
        raise ValueError(f"{where}: multimodal_projector_bias is false; the bridge has biases here")
    kind = config.get("vision_config", {}).get("model_type", CLIP)
    if kind != CLIP:
        raise ValueError(f"{where}: its vision tower is a {kind!r}; a {CLIP} is supported")


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _language(
    folder: Path, config: dict[str, Any], tensors: Tensors, rows: int, where: str
) -> Frozen:
    own = {"model_type": "llama", **config["text_config"]}
    frozen = Frozen(own, tensors, folder)
    check_language(frozen, f"{where}: language_model")
    files = folder / FILES / "language"
    if rows:
        frozen = strip_rows(frozen, rows)
    if (files / "config.json").is_file():
        frozen = replace(frozen, config=read_json(files / "config.json", "config"), files=files)
    return frozen


# ------------------------------------------------------------------------------------ writing


def write_llava_folder(parts: LlavaParts, out: Path) -> None:
    """Write a folder that transformers' ``LlavaForConditionalGeneration`` and processor load.

    Raises:
        ValueError: ``out`` exists already.
    """
    with published(out) as aside:
        aside.mkdir()
        language = parts.language
        if parts.huggingface is not None:
            copy_small(parts.huggingface, aside, skip=())
            config = read_config(aside)
            note = read_json(aside / NOTE, "sidecar") if (aside / NOTE).is_file() else {}
            rows = note.get("rows", 0)
        else:
            config, rows = _prepare(parts, aside)
        if rows:
            language = add_rows(language, rows)
        tensors = {parts.tower + name: lazy for name, lazy in parts.encoder.tensors.items()}
        tensors |= _projector(parts, config)
        tensors |= {LANGUAGE + name: lazy for name, lazy in language.tensors.items()}
        write_folder(aside, tensors, out.name)


def _projector(parts: LlavaParts, config: dict[str, Any]) -> Tensors:
    weights = {name.removeprefix("bridge."): tensor for name, tensor in parts.bridge.items()}
    if "linear_2.weight" not in weights and config["projector_hidden_act"] == "linear":
        first = weights["linear_1.bias"]
        weights["linear_2.weight"] = torch.eye(len(first), dtype=first.dtype)
        weights["linear_2.bias"] = torch.zeros_like(first)
    return {PROJECTOR + name: Lazy.of(tensor) for name, tensor in weights.items()}


def _prepare(parts: LlavaParts, folder: Path) -> tuple[dict[str, Any], int]:
    """Write configuration, tokenizer and processor of a new folder.

    Returns:
        The configuration, and how many rows the language model lacks for ``<image>``.
    """
    recipe, language, vision = parts.recipe, parts.language, parts.encoder.config
    assert language.files is not None
    tokenizer: Any = AutoTokenizer.from_pretrained(language.files)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.padding_side = "left"  # generation needs it
    image = tokenizer.convert_tokens_to_ids("<image>")
    text = dict(language.config)
    rows = max(0, image + 1 - text["vocab_size"])
    text["vocab_size"] += rows
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    strategy: Any = "full" if recipe.encoder.features.tokens in ("all", "class") else "default"
    LlavaProcessor(
        _image_processor(recipe),
        tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image,
        image_seq_length=patches + (strategy == "full"),
        projector_hidden_act="linear" if recipe.model.bridge == "linear" else "gelu",
        vision_feature_layer=recipe.encoder.features.layer,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    config.dtype = str(stored_format(language)).removeprefix("torch.")
    config.save_pretrained(folder)
    text_config: Any = config.text_config
    GenerationConfig.from_model_config(text_config).save_pretrained(folder)
    write_json(folder / NOTE, {"format": 1, "rows": rows, "layout": recipe.layout})
    copy_small(language.files, folder / FILES / "language")
    write_json(folder / FILES / "language" / "config.json", language.config)
    return read_config(folder), rows


def _image_processor(recipe: Any) -> Any:
    pixels, size = recipe.encoder.pixels, recipe.encoder.image_size
    fields: dict[str, Any] = {
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
        "resample": {"bilinear": 2, "bicubic": 3}[pixels.interpolation],
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
    }
    if pixels.geometry == "pad":
        return LlavaImageProcessor(**fields, do_pad=True)
    if pixels.geometry == "squash":
        fields |= {"size": {"height": size, "width": size}, "do_center_crop": False}
    return CLIPImageProcessor(**fields)
