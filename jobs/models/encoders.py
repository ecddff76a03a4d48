"""Image encoders built and loaded: timm's, Hugging Face folders, the reference's
``eva_vit_g.pth``.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.models.encoder_settings import features_of, own_size, vision_config
from jobs.models.files import (
    dtype_of,
    find_folder,
    is_hub_id,
    local_folder,
    read_config,
    read_pth,
    read_state,
    readable,
)
from jobs.models.tensors import open_folder
from jobs.recipes.schema import EncoderChoice
from modeling.names import blip2_vision_to_eva
from modeling.vision.encoders import (
    EvaConfig,
    ImageEncoder,
    build_clip_encoder,
    build_eva_encoder,
    build_timm_encoder,
    eva_config,
    freeze,
)
from modeling.vision.families import FAMILIES, build_huggingface_encoder


def load_encoder(choice: EncoderChoice, weights: bool = True) -> ImageEncoder:
    """An image encoder, frozen in ``choice.dtype``, or trainable in fp32 with ``choice.train``.

    Args:
        choice: ``name`` is ``timm:NAME``, the reference's ``eva_vit_g.pth``, or a Hugging Face
            folder or hub id of CLIP, BLIP-2, SigLIP, SigLIP-2, DINOv2, DINOv3 or a timm model (the
            whole model or its vision tower).
        weights: False: build the tower without weights, on torch's current device, for weights
            that come from a checkpoint, or to count them.

    Raises:
        ValueError: There is no such file, folder or model, it has another architecture, its
            weights are damaged or misshapen, or it cannot take the image size.
    """
    name = choice.name
    if name.startswith("timm:"):
        encoder = _timm_encoder(choice, weights)
    elif name.endswith((".pth", ".pt")):
        state = read_pth("encoder", name)
        sizes = eva_config(state, choice.heads)
        encoder = build_eva_encoder(sizes, state=state if weights else None, **_options(choice))
    else:
        encoder = _huggingface_encoder(choice, weights)
    if not choice.train:
        return freeze(encoder, dtype_of(choice.dtype))
    encoder.checkpoint_blocks(choice.checkpoint_blocks)
    return encoder


def _options(choice: EncoderChoice) -> dict[str, Any]:
    """The arguments that every builder of an encoder takes."""
    return {
        "image_size": choice.image_size or own_size(choice),
        "drop_path": choice.drop_path if choice.train else 0.0,
        "dtype": torch.float32 if choice.train else dtype_of(choice.dtype),
        "features": features_of(choice),
    }


def _timm_encoder(choice: EncoderChoice, weights: bool) -> ImageEncoder:
    name = choice.name.removeprefix("timm:")
    if not weights:
        return build_timm_encoder(name, **_options(choice))
    import timm

    with torch.device("meta"):  # name and image size are checked before anything is fetched
        build_timm_encoder(name, **_options(choice))
    with readable("encoder", choice.name):
        state = timm.create_model(name, pretrained=True).state_dict()
    return build_timm_encoder(name, state=state, **_options(choice))


def _huggingface_encoder(choice: EncoderChoice, weights: bool) -> ImageEncoder:
    folder = find_folder("encoder", choice.name)
    vision = vision_config(folder, choice.name)
    if vision.model_type == "clip_vision_model":
        state = read_state(folder) if weights else None
        return build_clip_encoder(vision, state=state, **_options(choice))
    if vision.model_type == "timm_wrapper":
        return _timm_folder(vision, read_state(folder) if weights else None, choice)
    if vision.model_type in FAMILIES:
        state = read_state(folder) if weights else None
        return build_huggingface_encoder(vision, state=state, **_options(choice))
    if vision.model_type != "blip_2_vision_model":
        raise ValueError(
            f"encoder {choice.name!r} is a {vision.model_type!r} model; give a CLIP or BLIP-2 "
            "folder, one of SigLIP, SigLIP-2, DINOv2, DINOv3 or timm, eva_vit_g.pth, or timm:NAME"
        )
    if vision.hidden_act != "gelu":
        raise ValueError(
            f"encoder {choice.name!r}: vision_config.hidden_act = {vision.hidden_act!r}; "
            "a BLIP-2 tower with 'gelu' is needed"
        )
    sizes = eva_sizes(vision.to_dict())
    state = blip2_vision_to_eva(_read_tower(folder), sizes.blocks) if weights else None
    return build_eva_encoder(sizes, state=state, **_options(choice))


def eva_sizes(config: Mapping[str, Any]) -> EvaConfig:
    """Sizes of an EVA-CLIP tower from the configuration of Hugging Face's ``Blip2VisionModel``."""
    return EvaConfig(
        width=config["hidden_size"],
        blocks=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp=config["intermediate_size"],
        patch=config["patch_size"],
        eps=config["layer_norm_eps"],
    )


def _timm_folder(
    config: Any, state: dict[str, Tensor] | None, choice: EncoderChoice
) -> ImageEncoder:
    """A timm model in a Hugging Face folder, by timm's names or with the prefix ``timm_model.``."""
    if state is not None:
        state = {name.removeprefix("timm_model."): tensor for name, tensor in state.items()}
    options = {**_options(choice), "sizes": config.model_args}
    return build_timm_encoder(config.architecture, state=state, **options)


def _read_tower(folder: Path) -> dict[str, Tensor]:
    """The weights of a BLIP-2 folder's vision tower; its language model is not read."""
    tensors = {name: t for name, t in open_folder(folder).items() if _of_tower(name)}
    return {name.removeprefix("vision_model."): t.read() for name, t in tensors.items()}


def _of_tower(key: str) -> bool:
    """Whether a weight is the tower's: its name has a prefix in a whole BLIP-2, none in a tower
    alone.
    """
    return key.startswith(("vision_model.", "embeddings.", "encoder.layers.", "post_layernorm."))


def encoder_width(choice: EncoderChoice) -> int | None:
    """Width of an encoder's features; None for an encoder that is yet to be fetched.

    Raises:
        ValueError: There is no such encoder.
    """
    if choice.name.startswith("timm:"):
        return _timm_width(choice.name.removeprefix("timm:"))
    if choice.name.endswith((".pth", ".pt")):
        return eva_config(read_pth("encoder", choice.name), choice.heads).width
    if local_folder(choice.name) is None and is_hub_id(choice.name):
        return None
    config = read_config(find_folder("encoder", choice.name))
    if "architecture" in config:
        with torch.device("meta"):
            sizes = config.get("model_args")
            return build_timm_encoder(config["architecture"], sizes=sizes).width
    return config.get("vision_config", config).get("hidden_size")


@cache
def _timm_width(name: str) -> int:
    with torch.device("meta"):
        return build_timm_encoder(name).width
