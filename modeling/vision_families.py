"""SigLIP, SigLIP-2, DINOv2 and DINOv3 from Hugging Face, and timm's NaFlex, as timm's towers.

Hugging Face renamed the parts of these models between versions; saved folders have old or new
names. `tower_names` brings all of them to one form, from which timm's weights are made.

Legend: D width, P patches of the position grid, I numbers of a patch.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import GELUTanh, LayerNorm, SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from modeling.features import FeatureConfig
from modeling.vision_parts import (
    ImageEncoder,
    build,
    check_image_size,
    depth,
    mlp_ratio,
    resize_positions,
)
from modeling.weights import take

FAMILIES = (
    "siglip_vision_model",
    "siglip2_vision_model",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
)
"""Values of ``model_type`` in a vision tower's configuration that are built here."""
KINDS = ("weight", "bias")
Names = Mapping[str, Tensor]
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
_EMBEDDINGS = {
    "patch_embedding": "patch",
    "patch_embeddings": "patch",
    "patch_embeddings.projection": "patch",
    "position_embedding": "positions",
    "position_embeddings": "positions",
    "cls_token": "cls",
    "register_tokens": "registers",
}
_FINAL_NORMS = ("post_layernorm", "layernorm", "norm")
_BLOCK = re.compile(r"(?:encoder\.|model\.)?layers?\.(\d+)\.(.+)")
_PARTS = {
    **{"layer_norm1": "norm1", "layer_norm2": "norm2", "norm1": "norm1", "norm2": "norm2"},
    **{"layer_scale1": "scale1", "layer_scale2": "scale2"},
    **{f"self_attn.{part}_proj": part for part in "qkv"},
    **{f"attention.{part}_proj": part for part in "qkv"},
    **{f"attention.attention.{part}": part[0] for part in ("query", "key", "value")},
    **dict.fromkeys(("self_attn.out_proj", "attention.o_proj", "attention.output.dense"), "proj"),
    **{"mlp.fc1": "fc1", "mlp.fc2": "fc2"},
    **{"mlp.gate_proj": "gate", "mlp.up_proj": "fc1", "mlp.down_proj": "fc2"},
    **{"mlp.weights_in": "gate_and_fc1", "mlp.weights_out": "fc2"},
}
_INSIDE = {"norm1": "norm1", "norm2": "norm2", "proj": "attn.proj", "fc2": "mlp.fc2"}


@dataclass(frozen=True)
class PlainVit:
    """Sizes of a ViT with learned positions.

    Attributes:
        width, blocks, heads, mlp, patch, eps: sizes; `mlp` is the width behind a gate.
        activation: timm's name of it.
        class_token, registers: special tokens.
        gated: whether the MLP is a SwiGLU.
        scaled: whether branches have layer scale.
        qkv_bias: whether queries, keys and values have biases.
    """

    width: int
    blocks: int
    heads: int
    mlp: int
    patch: int
    eps: float
    activation: str
    class_token: bool = False
    registers: int = 0
    gated: bool = False
    scaled: bool = False
    qkv_bias: bool = True


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
    check_image_size(image_size, config.patch)
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
        state = _to_vision_transformer(tower_names(state), plain)
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
    check_image_size(image_size, config.patch_size)
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
        state = _to_eva(tower_names(state), config.num_hidden_layers, gated)
    return ImageEncoder(build(make, state, dtype), features.tokens)


def tower_names(state: Names) -> dict[str, Tensor]:
    """A tower's weights under one set of names, whatever version of transformers saved them.

    The names are `patch.weight`, `positions`, `cls`, `registers`, `norm.weight` and
    `blocks.0.PART.weight`, where PART is one of q, k, v, proj, fc1, fc2, gate, norm1, norm2,
    scale1, scale2; what is not of the tower (text, pooling, mask token) is left out.

    Raises:
        ValueError: There is no vision tower in it.
    """
    first = re.compile(r"(.*?)embeddings\.patch_embeddings?(?:\.projection)?\.weight")
    found = [match for name in state if (match := first.fullmatch(name))]
    if len(found) != 1:
        raise ValueError(
            f"weights have {len(found)} patch embeddings, where one vision tower has one: is this "
            "the right model, and is the file whole?"
        )
    result: dict[str, Tensor] = {}
    prefix = found[0][1]
    for name, tensor in state.items():
        if name.startswith(prefix):
            known = _known(name.removeprefix(prefix))
            if known:
                result[known] = tensor
    for name in [name for name in result if ".gate_and_fc1." in name]:
        gate, up = result.pop(name).chunk(2)
        result[name.replace("gate_and_fc1", "gate")] = gate
        result[name.replace("gate_and_fc1", "fc1")] = up
    return result


def _known(name: str) -> str:
    """The uniform name of a tower's weight, empty for one that is not used."""
    part, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias", "lambda1"):
        part, kind = name, ""
    block = _BLOCK.fullmatch(part)
    if block:
        inner = _PARTS.get(block[2])
        kind = {"lambda1": ""}.get(kind, kind)
        return f"blocks.{block[1]}.{inner}.{kind}".rstrip(".") if inner else ""
    if part in _FINAL_NORMS:
        return f"norm.{kind}"
    known = _EMBEDDINGS.get(part.removeprefix("embeddings."), "")
    return f"{known}.{kind}" if known == "patch" else known


def _to_vision_transformer(tower: Names, config: PlainVit) -> dict[str, Tensor]:
    result = _outside(tower)
    positions = take(tower, "positions")
    result["pos_embed"] = positions.reshape(1, -1, config.width)
    if config.class_token:
        result["cls_token"] = take(tower, "cls")
    if config.registers:  # here the class token's position is part of the token
        result["reg_token"] = take(tower, "registers")
        result["cls_token"] = result["cls_token"] + result["pos_embed"][:, :1]
        result["pos_embed"] = result["pos_embed"][:, 1:]
    for index in range(config.blocks):
        ours = f"blocks.{index}."
        get = partial(_of_block, tower, index)
        for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
            parts = [get(f"{part}.{kind}") for part in "qkv"]
            result[f"{ours}attn.qkv.{kind}"] = torch.cat(parts)
        if config.scaled:
            result[f"{ours}ls1.gamma"], result[f"{ours}ls2.gamma"] = get("scale1"), get("scale2")
        result |= _inside(get, ours, config.gated)
    return result


def _to_eva(tower: Names, blocks: int, gated: bool) -> dict[str, Tensor]:
    result = _outside(tower)
    result["cls_token"] = take(tower, "cls")
    if tower.get("registers") is not None and tower["registers"].numel():
        result["reg_token"] = tower["registers"]
    for index in range(blocks):
        ours = f"blocks.{index}."
        get = partial(_of_block, tower, index)
        result[f"{ours}attn.qkv.weight"] = torch.cat([get(f"{part}.weight") for part in "qkv"])
        for part in "qv":  # a model without these biases has zeros
            bias = tower.get(f"blocks.{index}.{part}.bias")
            none = torch.zeros_like(get("norm1.bias"))
            result[f"{ours}attn.{part}_bias"] = none if bias is None else bias
        result[f"{ours}gamma_1"], result[f"{ours}gamma_2"] = get("scale1"), get("scale2")
        result |= _inside(get, ours, gated)
    return result


def _of_block(tower: Names, index: int, name: str) -> Tensor:
    return take(tower, f"blocks.{index}.{name}")


def _outside(tower: Names) -> dict[str, Tensor]:
    """What is not in a block and has the same name in both kinds of towers."""
    result = {f"patch_embed.proj.{kind}": take(tower, f"patch.{kind}") for kind in KINDS}
    return result | {f"norm.{kind}": take(tower, f"norm.{kind}") for kind in KINDS}


def _inside(get: Callable[[str], Tensor], ours: str, gated: bool) -> dict[str, Tensor]:
    """What a block has in both kinds of towers; a SwiGLU's gate comes first."""
    result = {}
    for kind in KINDS:
        for part, name in (
            ("norm1",) * 2,
            ("norm2",) * 2,
            ("proj", "attn.proj"),
            ("fc2", "mlp.fc2"),
        ):
            result[f"{ours}{name}.{kind}"] = get(f"{part}.{kind}")
        up = get(f"fc1.{kind}")
        result[f"{ours}mlp.fc1.{kind}"] = torch.cat((get(f"gate.{kind}"), up)) if gated else up
    return result
