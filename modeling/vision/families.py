"""SigLIP, SigLIP-2, DINOv2 and DINOv3 from Hugging Face, and timm's NaFlex, as timm's towers.

Their weights' names are in `vision_names`.

Legend: D width, P patches of the position grid, I numbers of a patch.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.layers import GELUTanh, LayerNorm, SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from modeling.vision.features import FeatureConfig
from modeling.vision.names import PlainVit, to_eva, to_vision_transformer, tower_names
from modeling.vision.parts import (
    ImageEncoder,
    build,
    check_image_size,
    depth,
    mlp_ratio,
    resize_positions,
)

FAMILIES = (
    "siglip_vision_model",
    "siglip2_vision_model",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
)
"""Values of ``model_type`` in a vision tower's configuration that are built here."""
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}


def build_plain_vit(
    config: PlainVit,
    image_size: int,
    state: Mapping[str, Tensor] | None,
    *,
    drop_path: float,
    dtype: torch.dtype,
    features: FeatureConfig,
) -> ImageEncoder:
    """A tower without its pooling. With registers, class token and registers have no position.

    Args:
        config: Sizes.
        image_size: Side in pixels, a multiple of the patch size.
        state: Weights under timm's names; None leaves random ones.
        drop_path: Stochastic depth when the encoder is finetuned.
        dtype: Of the loaded weights.
        features: Settled choice of block, norm and tokens.

    Raises:
        ValueError: The image size, the layer or a key of the state does not fit.
    """
    check_image_size(image_size, config.patch, config.own_size)
    gated: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    make = partial(
        VisionTransformer,
        img_size=image_size,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=depth(config.blocks, features),
        num_heads=config.heads,
        mlp_ratio=mlp_ratio(config.mlp * (1 + config.gated), config.width),
        qkv_bias=config.qkv_bias,
        init_values=1.0 if config.scaled else None,
        class_token=config.class_token,
        reg_tokens=config.registers,
        no_embed_class=config.registers > 0,
        final_norm=features.norm == "yes",
        norm_layer=partial(LayerNorm, eps=config.eps),
        num_classes=0,
        global_pool="",
        drop_path_rate=drop_path,
        **(gated if config.gated else {"act_layer": config.activation}),
    )
    return ImageEncoder(build(make, state, dtype), features.tokens)


# --------------------------------------------------------------------------------- NaFlex


def build_naflex(
    name: str,
    whole: Any,
    image_size: int | None,
    state: Mapping[str, Tensor] | None,
    *,
    drop_path: float,
    dtype: torch.dtype,
    features: FeatureConfig,
) -> ImageEncoder:
    """timm's NaFlex tower of SigLIP-2 as a plain one for squares of one size.

    Args:
        name: timm's, for messages.
        whole: the model, for its sizes; may be on the meta device.
        image_size: Side in pixels; None takes the grid's that its positions are learned on.

    Raises:
        ValueError: Another NaFlex tower than SigLIP-2's, or a size or weight that does not fit.
    """
    if whole.num_prefix_tokens or "embeds.pos_embed" not in dict(whole.named_parameters()):
        raise ValueError(
            f"encoder {name!r} is a NaFlexVit with special tokens or without learned positions; "
            "of these towers SigLIP-2's are supported (naflexvit_base_patch16_siglip)."
        )
    block, patch = whole.blocks[0], whole.embeds.patch_size[0]
    config = PlainVit(
        width=whole.embed_dim,
        blocks=len(whole.blocks),
        heads=block.attn.num_heads,
        mlp=block.mlp.fc1.out_features,
        patch=patch,
        eps=block.norm1.eps,
        activation="gelu_tanh" if isinstance(block.mlp.act, GELUTanh) else "gelu",
    )
    size = image_size or patch * math.isqrt(whole.embeds.pos_embed[0, ..., 0].numel())
    check_image_size(size, patch)
    if state is not None:
        state = dict(state)
        for kind in ("weight", "bias"):
            state[f"patch_embed.proj.{kind}"] = state.pop(f"embeds.proj.{kind}")
        state["pos_embed"] = state.pop("embeds.pos_embed").flatten(1, 2)
        state = naflex_to_plain(state, patch, size)
    return build_plain_vit(config, size, state, drop_path=drop_path, dtype=dtype, features=features)


def naflex_to_plain(state: Mapping[str, Tensor], patch: int, image_size: int) -> dict[str, Tensor]:
    """The patch projection of a NaFlex tower as a convolution, and its positions for one square
    size, interpolated as in its own library (bilinear, anti-aliased).

    Args:
        state: Weights in timm's names; `patch_embed.proj.weight` is (D, I), `pos_embed` is
            (1, P, D) of a square grid.
        patch: Side of a patch in pixels.
        image_size: Side of the image in pixels.
    """
    result = dict(state)
    flat_DI = state["patch_embed.proj.weight"]
    square_D3HW = flat_DI.view(len(flat_DI), patch, patch, 3).permute(0, 3, 1, 2)
    result["patch_embed.proj.weight"] = square_D3HW.contiguous()
    side = image_size // patch
    result["pos_embed"] = resize_positions(state["pos_embed"].float(), side * side, 0, "bilinear")
    return result


# --------------------------------------------------------------------------- Hugging Face


def build_huggingface_encoder(
    config: Any,
    image_size: int,
    state: Mapping[str, Tensor] | None = None,
    drop_path: float = 0.0,
    dtype: torch.dtype = torch.float32,
    *,
    features: FeatureConfig,
) -> ImageEncoder:
    """A vision tower of one of `FAMILIES`.

    Args:
        config: Its Hugging Face configuration (of the vision tower).
        image_size: Side in pixels, a multiple of the patch size.
        state: State dict of the tower or of a model around it; None leaves random weights.
        drop_path: Stochastic depth when the encoder is finetuned.
        dtype: Of the loaded weights.
        features: Settled choice of block, norm and tokens.

    Raises:
        ValueError: The configuration, the size or a key of the state does not fit.
    """
    if config.model_type == "dinov3_vit":
        return _build_dinov3(
            config, image_size, state, drop_path=drop_path, dtype=dtype, features=features
        )
    if config.model_type.startswith("siglip"):
        plain = _siglip_sizes(config)
    else:
        plain = _dinov2_sizes(config)
    if state is not None:
        state = to_vision_transformer(tower_names(state), plain)
        if config.model_type == "siglip2_vision_model":
            check_image_size(image_size, plain.patch)
            state = naflex_to_plain(state, plain.patch, image_size)
    return build_plain_vit(
        plain, image_size, state, drop_path=drop_path, dtype=dtype, features=features
    )


def _activation(config: Any) -> str:
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(f"hidden_act = {config.hidden_act!r} is not one of {sorted(ACTIVATIONS)}.")
    return ACTIVATIONS[config.hidden_act]


def _siglip_sizes(config: Any) -> PlainVit:
    return PlainVit(
        width=config.hidden_size,
        blocks=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp=config.intermediate_size,
        patch=config.patch_size,
        eps=config.layer_norm_eps,
        activation=_activation(config),
        own_size=getattr(config, "image_size", 0),  # a NaFlex tower has none
    )


def _dinov2_sizes(config: Any) -> PlainVit:
    mlp = int(config.hidden_size * config.mlp_ratio)
    if config.use_swiglu_ffn:  # two thirds of it, up to a multiple of 8, as in the published code
        mlp = (int(mlp * 2 / 3) + 7) // 8 * 8
    return PlainVit(
        width=config.hidden_size,
        blocks=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp=mlp,
        patch=config.patch_size,
        eps=config.layer_norm_eps,
        activation=_activation(config),
        class_token=True,
        registers=getattr(config, "num_register_tokens", 0),
        gated=config.use_swiglu_ffn,
        scaled=True,
        qkv_bias=config.qkv_bias,
        own_size=config.image_size,
    )


def _build_dinov3(
    config: Any,
    image_size: int,
    state: Mapping[str, Tensor] | None,
    *,
    drop_path: float,
    dtype: torch.dtype,
    features: FeatureConfig,
) -> ImageEncoder:
    check_image_size(image_size, config.patch_size, config.image_size)
    if config.key_bias or not (config.proj_bias and config.mlp_bias):
        raise ValueError(
            "this DINOv3 has biases on keys, or none on projections or MLP; the published models "
            "have no key bias (key_bias false) and all others (proj_bias, mlp_bias true)."
        )
    gated = config.use_gated_mlp
    if config.hidden_act != ("silu" if gated else "gelu"):
        raise ValueError(
            f"hidden_act = {config.hidden_act!r}: a DINOv3 with use_gated_mlp = {gated} has "
            f"{'silu' if gated else 'gelu'!r}."
        )
    make = partial(
        Eva,
        img_size=image_size,
        patch_size=config.patch_size,
        embed_dim=config.hidden_size,
        depth=depth(config.num_hidden_layers, features),
        num_heads=config.num_attention_heads,
        mlp_ratio=mlp_ratio(config.intermediate_size, config.hidden_size),
        swiglu_mlp=gated,
        num_reg_tokens=config.num_register_tokens,
        init_values=1.0,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_temperature=config.rope_theta,
        rope_rotate_half=True,
        use_post_transformer_norm=features.norm == "yes",
        norm_layer=partial(LayerNorm, eps=config.layer_norm_eps),
        num_classes=0,
        global_pool="",
        drop_path_rate=drop_path,
    )
    if state is not None:
        state = to_eva(tower_names(state), config.num_hidden_layers, gated)
    return ImageEncoder(build(make, state, dtype), features.tokens)
