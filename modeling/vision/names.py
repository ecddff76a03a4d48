"""Names of SigLIP's and DINO's weights: from Hugging Face's folders to timm's towers.

Hugging Face renamed the parts of these models between versions; saved folders have old or new
names. `tower_names` brings all of them to one form, from which timm's weights are made.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from modeling.names import take

KINDS = ("weight", "bias")
Names = Mapping[str, Tensor]
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
    """Sizes and parts of a ViT with learned positions.

    Attributes:
        width: Width of the hidden states.
        blocks: Blocks of the whole model.
        heads: Attention heads.
        mlp: Width of the MLP's hidden layer, behind the gate where it has one.
        patch: Side of a patch in pixels.
        eps: Epsilon of the norms.
        activation: timm's name of the MLP's activation.
        class_token: Whether a class token stands in front of the patches.
        registers: Number of register tokens.
        pre_norm: Whether a norm stands in front of the blocks.
        gated: Whether the MLP is a SwiGLU.
        scaled: Whether the blocks' branches have layer scale.
        qkv_bias: Whether queries, keys and values have biases.
        own_size: Side in pixels of the images that the model was made for; 0: none.
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
    pre_norm: bool = False
    gated: bool = False
    scaled: bool = False
    qkv_bias: bool = True
    own_size: int = 0


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


def to_vision_transformer(tower: Names, config: PlainVit) -> dict[str, Tensor]:
    """`tower_names` -> the names of timm's VisionTransformer.

    Raises:
        ValueError: A weight is missing, by name.
    """
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


def to_eva(tower: Names, blocks: int, gated: bool) -> dict[str, Tensor]:
    """`tower_names` -> the names of timm's Eva; arguments as its sizes.

    Raises:
        ValueError: A weight is missing, by name.
    """
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
    """Weights outside the blocks that have the same name in both kinds of towers."""
    result = {f"patch_embed.proj.{kind}": take(tower, f"patch.{kind}") for kind in KINDS}
    return result | {f"norm.{kind}": take(tower, f"norm.{kind}") for kind in KINDS}


def _inside(get: Callable[[str], Tensor], ours: str, gated: bool) -> dict[str, Tensor]:
    """Weights of a block that both kinds of towers have; a SwiGLU's gate comes first."""
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
