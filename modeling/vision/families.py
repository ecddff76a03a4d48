"""Towers of other families: SigLIP, SigLIP-2 and DINO from Hugging Face, NaFlex from timm.

`modeling.vision.names` translates their weights' names.

Shapes: see `modeling`; I numbers of a patch.
"""

import math
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from timm.layers import GELUTanh, SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from modeling.vision.features import FeatureConfig
from modeling.vision.names import PlainVit, to_eva, to_vision_transformer, tower_names
from modeling.vision.tower import (
    ImageEncoder,
    build,
    check_image_size,
    resize_positions,
    timm_options,
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
    """A ViT with learned positions, without its pooling.

    With registers, the special tokens have no position; without, the class token has one.

    Args:
        config: Sizes and parts.
        image_size: Side in pixels, a multiple of the patch size.
        state: Weights under timm's names; None leaves random ones.
        drop_path: Stochastic depth, when the encoder is finetuned.
        dtype: Number format of the loaded weights.
        features: Settled choice of block, norm and tokens.

    Raises:
        ValueError: The image size, the layer or a key of the state does not fit.
    """
    check_image_size(image_size, config.patch, config.own_size)
    options = timm_options(
        image_size=image_size,
        width=config.width,
        blocks=config.blocks,
        heads=config.heads,
        mlp=config.mlp * (1 + config.gated),
        patch=config.patch,
        eps=config.eps,
        drop_path=drop_path,
        features=features,
    )
    gated: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    make = partial(
        VisionTransformer,
        qkv_bias=config.qkv_bias,
        init_values=1.0 if config.scaled else None,
        class_token=config.class_token,
        reg_tokens=config.registers,
        no_embed_class=config.registers > 0,
        pre_norm=config.pre_norm,
        final_norm=features.norm == "yes",
        **options,
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
    """timm's NaFlex tower of SigLIP-2 as a plain one for square images of one size.

    Args:
        name: timm's name of the model, for messages.
        whole: The model, for its sizes; may be on the meta device.
        image_size: Side in pixels; None takes that of the grid on which its positions are learned.
        state: Weights under timm's names; None leaves random ones.
        drop_path: Stochastic depth, when the encoder is finetuned.
        dtype: Number format of the loaded weights.
        features: Settled choice of block, norm and tokens.

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
    """A NaFlex tower's weights for square images of one size.

    The patch projection becomes a convolution; positions are interpolated as in NaFlex's own
    library (bilinear, anti-aliased).

    Args:
        state: Weights under timm's names; `patch_embed.proj.weight` is (D, I), `pos_embed` is
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
        config: Hugging Face's configuration of the tower.
        image_size: Side in pixels, a multiple of the patch size.
        state: State dict of the tower or of a model around it; None leaves random weights.
        drop_path: Stochastic depth, when the encoder is finetuned.
        dtype: Number format of the loaded weights.
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


def timm_activation(name: str, known: Collection[str] = ACTIVATIONS) -> str:
    """timm's name of Hugging Face's activation.

    Args:
        name: `hidden_act` of a configuration.
        known: Activations that the family may have.

    Raises:
        ValueError: Another activation.
    """
    if name not in known:
        raise ValueError(f"hidden_act = {name!r} is not one of {sorted(known)}.")
    return ACTIVATIONS[name]


def _siglip_sizes(config: Any) -> PlainVit:
    return PlainVit(
        width=config.hidden_size,
        blocks=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp=config.intermediate_size,
        patch=config.patch_size,
        eps=config.layer_norm_eps,
        activation=timm_activation(config.hidden_act),
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
        activation=timm_activation(config.hidden_act),
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
    options = timm_options(
        image_size=image_size,
        width=config.hidden_size,
        blocks=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp=config.intermediate_size,
        patch=config.patch_size,
        eps=config.layer_norm_eps,
        drop_path=drop_path,
        features=features,
    )
    make = partial(
        Eva,
        swiglu_mlp=gated,
        num_reg_tokens=config.num_register_tokens,
        init_values=1.0,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_temperature=config.rope_theta,
        rope_rotate_half=True,
        use_post_transformer_norm=features.norm == "yes",
        **options,
    )
    if state is not None:
        state = to_eva(tower_names(state), config.num_hidden_layers, gated)
    return ImageEncoder(build(make, state, dtype), features.tokens)
