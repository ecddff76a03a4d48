"""Image encoders from timm's vision transformers, as BLIP-2 uses them (paper, section 4.1).

Legend: B images, P image tokens (class token, registers, patches), D width. By default the output
is what enters the last block: that block is not built, there is no final norm and no pooling, and
all tokens are kept, class token first. ``modeling.vision.features`` has the choices of other
families.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import timm
import torch
from timm.layers import LayerNorm
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from modeling.names import clip_vision_to_timm
from modeling.vision.families import build_naflex
from modeling.vision.features import PAPER, FeatureConfig
from modeling.vision.parts import (
    ImageEncoder,
    Vit,
    build,
    check_image_size,
    depth,
    load_vit,
    mlp_ratio,
    resize_positions,
)

ModuleT = TypeVar("ModuleT", bound=nn.Module)
__all__ = ["EvaConfig", "ImageEncoder", "Vit", "build_clip_encoder", "build_eva_encoder"]
__all__ += ["build_timm_encoder", "eva_config", "freeze", "load_vit", "resize_positions"]
__all__ += ["timm_outline"]
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}


@dataclass(frozen=True)
class EvaConfig:
    """Sizes of a plain EVA-CLIP tower as it is used; the defaults are ViT-g/14's (section 4.1)."""

    width: int = 1408
    blocks: int = 39  # of 40: the last is not used
    heads: int = 16
    mlp: int = 6144
    patch: int = 14
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(
                f"encoder.heads = {self.heads} does not divide the encoder's width {self.width}: "
                "set it to the number of attention heads these weights were trained with."
            )


HEAD_WIDTH = 88
"""Of an EVA-CLIP ViT-g: the one size of it that no shape of its weights tells."""


def eva_config(state: Mapping[str, Tensor], heads: int = 0) -> EvaConfig:
    """Sizes of an EVA-CLIP tower from its weights under timm's names (the reference's
    `eva_vit_g.pth`).

    The last block is left out where the weights are a whole model's: 40 blocks, or (at sizes other
    than ViT-g's) a final norm.

    Args:
        state: Weights, or tensors of their shapes.
        heads: Attention heads; 0 takes heads of width 88.

    Raises:
        ValueError: A weight that tells a size is missing or misshapen, by name.
    """
    first = "blocks.0.mlp.fc1.weight"
    for key, dims in ((first, 2), ("patch_embed.proj.weight", 4), ("pos_embed", 3)):
        if key not in state or state[key].ndim != dims:
            raise ValueError(
                f"weights lack {key!r} with {dims} dimensions: give the plain state dict of an "
                "EVA-CLIP tower, as in eva_vit_g.pth."
            )
    mlp, width = state[first].shape
    blocks = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    whole = blocks == 40 or (blocks != 39 and "norm.weight" in state)
    heads = heads or max(1, width // HEAD_WIDTH)
    patch = state["patch_embed.proj.weight"].shape[-1]
    return EvaConfig(width, blocks - whole, heads, mlp, patch)


def build_eva_encoder(
    config: EvaConfig,
    image_size: int,
    state: Mapping[str, Tensor] | None = None,
    drop_path: float = 0.0,
    dtype: torch.dtype = torch.float32,
    *,
    features: FeatureConfig = PAPER,
) -> ImageEncoder:
    """An EVA-CLIP tower: timm's Eva with biases on queries and values and none on keys.

    Args:
        config: Sizes.
        image_size: Side in pixels, a multiple of the patch size; position embeddings are resized
            to it.
        state: Weights under timm's names (`weights.blip2_vision_to_eva` makes them of Hugging
            Face's); None leaves random weights.
        drop_path: Stochastic depth when the encoder is finetuned.
        dtype: Of the loaded weights.
        features: Settled choice of block, norm and tokens.

    Raises:
        ValueError: The image size or a key of the state does not fit.
    """
    check_image_size(image_size, config.patch)
    if features.layer == -1 or features.norm == "yes":
        raise ValueError(
            f"encoder.features: layer = {features.layer}, norm = {features.norm!r}; these weights "
            "end with the block before the last: take layer -2 or an earlier one, and no norm."
        )
    make = partial(
        Eva,
        img_size=image_size,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=depth(config.blocks + 1, features),
        num_heads=config.heads,
        mlp_ratio=mlp_ratio(config.mlp, config.width),
        norm_layer=partial(LayerNorm, eps=config.eps),
        use_post_transformer_norm=False,
        num_classes=0,
        global_pool="",
        drop_path_rate=drop_path,
    )
    return ImageEncoder(build(make, state, dtype), features.tokens)


def build_clip_encoder(
    config: CLIPVisionConfig,
    image_size: int,
    state: Mapping[str, Tensor] | None = None,
    drop_path: float = 0.0,
    dtype: torch.dtype = torch.float32,
    *,
    features: FeatureConfig = PAPER,
) -> ImageEncoder:
    """The vision tower of a Hugging Face CLIP (by default without its last block), `ln_pre` kept.

    Args:
        config: `CLIPVisionConfig` of the weights.
        image_size: Side in pixels, a multiple of the patch size; position embeddings are resized
            to it.
        state: State dict of `CLIPModel` or `CLIPVisionModel`; None leaves random weights.
        drop_path: Stochastic depth when the encoder is finetuned.
        dtype: Of the loaded weights.
        features: Settled choice of block, norm and tokens.

    Raises:
        ValueError: The image size, the activation or a key of the state does not fit.
    """
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(f"hidden_act = {config.hidden_act!r} is not one of {sorted(ACTIVATIONS)}.")
    patch_size = int(config.patch_size)  # type: ignore[arg-type]
    check_image_size(image_size, patch_size)
    make = partial(
        VisionTransformer,
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=config.hidden_size,
        depth=depth(config.num_hidden_layers, features),
        num_heads=config.num_attention_heads,
        mlp_ratio=mlp_ratio(config.intermediate_size, config.hidden_size),
        pre_norm=True,
        final_norm=features.norm == "yes",
        act_layer=ACTIVATIONS[config.hidden_act],
        norm_layer=partial(LayerNorm, eps=config.layer_norm_eps),
        num_classes=0,
        global_pool="",
        drop_path_rate=drop_path,
    )
    if state is not None:
        state = clip_vision_to_timm(state, config.num_hidden_layers)
    return ImageEncoder(build(make, state, dtype), features.tokens)


def build_timm_encoder(
    name: str,
    image_size: int | None = None,
    state: Mapping[str, Tensor] | None = None,
    drop_path: float = 0.0,
    dtype: torch.dtype = torch.float32,
    *,
    features: FeatureConfig = PAPER,
    sizes: Mapping[str, Any] | None = None,
) -> ImageEncoder:
    """Any timm VisionTransformer or Eva by name, and the NaFlex towers of SigLIP-2 at one size.

    `eva_giant_patch14_clip_224` is the paper's ViT-g (39 of 40 blocks, 985,894,528 parameters);
    `vit_large_patch14_clip_quickgelu_224` its ViT-L (mind `quickgelu`: OpenAI's weights need that
    activation).

    Args:
        name: timm model name.
        image_size: Side in pixels; None takes the model's own.
        state: State dict in timm's names, of all blocks; None leaves random weights.
        drop_path: Stochastic depth when the encoder is finetuned.
        dtype: Of the loaded weights.
        features: Settled choice of block, norm and tokens.
        sizes: Arguments of timm's that change the named model (`embed_dim`, `depth`).

    Raises:
        ValueError: Unknown name, another architecture, or a size, a feature or a state that does
            not fit.
    """
    whole = timm_outline(name, sizes)
    if isinstance(whole, NaFlexVit):
        return build_naflex(
            name, whole, image_size, state, drop_path=drop_path, dtype=dtype, features=features
        )
    size = image_size or whole.patch_embed.img_size[0]
    check_image_size(size, whole.patch_embed.patch_size[0], whole.patch_embed.img_size[0])
    normed = features.norm == "yes"
    if normed and isinstance(whole.norm, nn.Identity):
        raise ValueError(
            f"encoder {name!r} has no norm after its last block: give --encoder.features.norm no."
        )
    norm = "final_norm" if isinstance(whole, VisionTransformer) else "use_post_transformer_norm"
    options: dict[str, Any] = {
        "img_size": size,
        "depth": depth(len(whole.blocks), features),
        "num_classes": 0,
        "global_pool": "",
        "drop_path_rate": drop_path,
        norm: normed,
    }
    make: Any = partial(
        timm.create_model,
        name,
        **{**(sizes or {}), **options},
    )
    return ImageEncoder(build(make, state, dtype), features.tokens)


def timm_outline(name: str, sizes: Mapping[str, Any] | None = None) -> Any:
    """A timm model without memory, all of its blocks.

    Raises:
        ValueError: Unknown name or another architecture.
    """
    if not timm.is_model(name):
        raise ValueError(f"encoder {name!r} is not a timm model; see timm.list_models('*vit*').")
    with torch.device("meta"):
        whole = timm.create_model(name, **(sizes or {}))
    if not isinstance(whole, VisionTransformer | Eva | NaFlexVit):
        raise ValueError(
            f"encoder {name!r} is a {type(whole).__name__}; a VisionTransformer, an Eva or a "
            "NaFlexVit is needed."
        )
    return whole


def freeze(module: ModuleT, dtype: torch.dtype | None = None) -> ModuleT:
    """Freezes a model in place: no gradients, eval mode for good (`train()` does nothing), weights
    in `dtype`.
    """
    module.requires_grad_(False).eval()
    if dtype is not None:
        module.to(dtype)
    for part in module.modules():
        part.train = partial(_stay_in_eval, part)  # type: ignore[method-assign]
    return module


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
