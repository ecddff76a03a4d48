"""The frozen models of a checkpoint that does not hold them, in Hugging Face's form."""

from dataclasses import replace
from typing import Any

from jobs.interchange.parts import (
    Frozen,
    Options,
    Parts,
    check_language,
    check_tower,
    language_outline,
)
from jobs.interchange.towers import apply_table, count_blocks, eva_to_huggingface
from jobs.models.encoders import load_encoder
from jobs.models.files import find_folder, read_config
from jobs.models.fingerprint import check_fingerprint
from jobs.models.tensors import Lazy, Tensors, open_folder
from jobs.recipes.schema import Stage2Recipe
from modeling.blip2 import Stage1Config
from modeling.vision.encoders import resize_positions

POSITIONS = "embeddings.position_embedding"


def with_frozen(parts: Parts, options: Options) -> Parts:
    """The checkpoint with the frozen models that the user or its recipe names.

    Raises:
        ValueError: A frozen model cannot be found, or does not fit the trained weights.
    """
    encoder, language = parts.encoder, parts.language
    if encoder is None:
        encoder = _named_encoder(options.encoder or parts.recipe.encoder.name, parts)
    size = parts.recipe.encoder.image_size
    if encoder.config.get("model_type") == "clip_vision_model":
        raise ValueError(
            f"encoder {parts.recipe.encoder.name!r} is a CLIP, which Hugging Face's BLIP-2 has no "
            "place for (it lacks the norm before the first block); only EVA encoders can go there. "
            "Use --to lavis, or keep the native folder"
        )
    if encoder.config["image_size"] != size:
        encoder = _resized(encoder, size)
    if isinstance(parts.recipe, Stage2Recipe) and language is None:
        name = options.language or parts.recipe.language.name
        folder = find_folder("language model", name)
        language = Frozen(read_config(folder), open_folder(folder), folder)
        check_language(language, f"language model {name!r}")
        check_fingerprint(parts.recipe.language.digest, language.tensors, name)
    parts = replace(parts, encoder=encoder, language=language)
    _check_widths(parts)
    return parts


def _named_encoder(name: str, parts: Parts) -> Frozen:
    if name.startswith("timm:") or name.endswith((".pth", ".pt")):
        return _built_encoder(name, parts)
    folder = find_folder("encoder", name)
    config = read_config(folder)
    tensors = open_folder(folder)
    if "vision_config" in config:
        config = {"model_type": f"{config['model_type']}_vision"} | config["vision_config"]
        tower = "vision_model."
        tensors = {n.removeprefix(tower): t for n, t in tensors.items() if n.startswith(tower)}
    if "clip" in config.get("model_type", ""):
        return Frozen(config | {"model_type": "clip_vision_model"}, tensors)
    if config.get("model_type") != "blip_2_vision_model":
        raise ValueError(
            f"encoder {name!r} is a {config.get('model_type')!r} model, which Hugging Face's "
            "BLIP-2 has no place for; only EVA encoders can go there"
        )
    frozen = Frozen(config, tensors, folder)
    check_tower(frozen, f"encoder {name!r}")
    return frozen


def _built_encoder(name: str, parts: Parts) -> Frozen:
    """An encoder that is no Hugging Face folder and is built as a module first."""
    vit: Any = load_encoder(replace(parts.recipe.encoder, name=name)).vit
    return eva_of(vit, {n: Lazy.of(t) for n, t in vit.state_dict().items()}, name)


def eva_of(vit: Any, state: Tensors, name: str) -> Frozen:
    """The tower of Hugging Face's BLIP-2 from timm's ``Eva``.

    Args:
        vit: module that the sizes are read from; may be on the meta device.
        state: weights by timm's names.
        name: name of the encoder, for messages.

    Raises:
        ValueError: The encoder's architecture is not EVA-CLIP's.
    """
    if "blocks.0.attn.q_bias" not in state:
        raise ValueError(
            f"encoder {name!r} has another form than EVA-CLIP's, and other formats have no place "
            "for it; keep the native folder"
        )
    blocks = count_blocks(state, "blocks.")
    config = {
        "architectures": ["Blip2VisionModel"],
        "model_type": "blip_2_vision_model",
        "hidden_size": vit.embed_dim,
        "intermediate_size": state["blocks.0.mlp.fc1.bias"].shape[0],
        "num_hidden_layers": blocks,
        "num_attention_heads": vit.blocks[0].attn.num_heads,
        "image_size": vit.patch_embed.img_size[0],
        "patch_size": vit.patch_embed.patch_size[0],
        "layer_norm_eps": vit.blocks[0].norm1.eps,
        "hidden_act": "gelu",
    }
    return Frozen(config, apply_table(eva_to_huggingface(blocks), state))


def _resized(encoder: Frozen, size: int) -> Frozen:
    """The encoder with position embeddings for the image size that the recipe trained at."""
    old = encoder.tensors[POSITIONS]
    patches = (size // encoder.config["patch_size"]) ** 2
    shape = (1, patches + 1, old.shape[-1])
    lazy = Lazy(shape, old.dtype, lambda: resize_positions(old.read(), patches))
    config = encoder.config | {"image_size": size}
    return replace(encoder, config=config, tensors={**encoder.tensors, POSITIONS: lazy})


def _check_widths(parts: Parts) -> None:
    model = parts.recipe.model
    assert parts.encoder is not None
    width = parts.encoder.config["hidden_size"]
    if width != model.qformer.encoder_width:
        raise ValueError(
            f"encoder {parts.recipe.encoder.name!r} has width {width}, but the weights were "
            f"trained on one of {model.qformer.encoder_width}; name it with --encoder"
        )
    if parts.language is None or isinstance(model, Stage1Config):
        return
    embeds = language_outline(parts.language.config).get_input_embeddings().weight
    if embeds.shape[1] != model.llm_width:
        raise ValueError(
            f"language model of width {embeds.shape[1]}, but the weights were trained on one of "
            f"{model.llm_width}; name it with --language"
        )
