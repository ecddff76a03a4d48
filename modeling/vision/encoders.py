"""Image encoders as BLIP-2 uses them (paper, section 4.1): EVA-CLIP, CLIP, and timm's by name.

By default the output is what enters the last block: that block is not built, there is no final norm
and no pooling, and all tokens are kept, class token first. `modeling.vision.features` has the
choices of other families, `modeling.vision.families` their towers.

Shapes: see `modeling`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import timm
import torch
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from modeling.names import clip_vision_to_timm
from modeling.vision.families import build_naflex, build_plain_vit, timm_activation
from modeling.vision.features import PAPER, FeatureConfig
from modeling.vision.names import PlainVit
from modeling.vision.tower import (
    ImageEncoder,
    Vit,
    build,
    check_image_size,
    depth,
    load_vit,
    resize_positions,
    timm_options,
)

ModuleT = TypeVar("ModuleT", bound=nn.Module)
__all__ = ["EvaConfig", "ImageEncoder", "Vit", "build_clip_encoder", "build_eva_encoder"]
__all__ += ["build_timm_encoder", "eva_config", "freeze", "load_vit", "resize_positions"]
__all__ += ["timm_outline"]


@dataclass(frozen=True)
class EvaConfig:
    """Sizes of an EVA-CLIP tower as it is used; the defaults are ViT-g/14's (section 4.1).

    Attributes:
        width: Width of the hidden states.
        blocks: Blocks that are used: 39 of ViT-g's 40.
        heads: Attention heads.
        mlp: Width of the MLP's hidden layer.
        patch: Side of a patch in pixels.
        eps: Epsilon of the norms.
    """

    width: int = 1408
    blocks: int = 39
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
"""Width of an EVA-CLIP ViT-g's heads: the one size that no shape of its weights tells."""


def eva_config(state: Mapping[str, Tensor], heads: int = 0) -> EvaConfig:
    """Sizes of an EVA-CLIP tower, from its weights under timm's names.

    The reference's `eva_vit_g.pth` has these names. The last block is left out where the weights
    are a whole model's: 40 blocks, or (at sizes other than ViT-g's) a final norm.

    Args:
        state: Weights, or tensors of their shapes.
        heads: Number of attention heads; 0 takes heads of width 88.

    Raises:
        ValueError: A weight that tells a size is missing or has other dimensions; its name is told.
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
    return EvaConfig(width=width, blocks=blocks - whole, heads=heads, mlp=mlp, patch=patch)


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
        state: Weights under timm's names (`names.blip2_vision_to_eva` makes them of Hugging
            Face's); None leaves random weights.
        drop_path: Stochastic depth, when the encoder is finetuned.
        dtype: Number format of the loaded weights.
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
    options = timm_options(
        image_size=image_size,
        width=config.width,
        blocks=config.blocks + 1,
        heads=config.heads,
        mlp=config.mlp,
        patch=config.patch,
        eps=config.eps,
        drop_path=drop_path,
        features=features,
    )
    make = partial(Eva, use_post_transformer_norm=False, **options)
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
    """The vision tower of a Hugging Face CLIP, with its norm in front of the blocks.

    Args:
        config: Hugging Face's configuration of the tower.
        image_size: Side in pixels, a multiple of the patch size; position embeddings are resized
            to it.
        state: State dict of `CLIPModel` or `CLIPVisionModel`; None leaves random weights.
        drop_path: Stochastic depth, when the encoder is finetuned.
        dtype: Number format of the loaded weights.
        features: Settled choice of block, norm and tokens.

    Raises:
        ValueError: The image size, the activation or a key of the state does not fit.
    """
    tower = PlainVit(
        width=config.hidden_size,
        blocks=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp=config.intermediate_size,
        patch=int(config.patch_size),  # type: ignore[arg-type]
        eps=config.layer_norm_eps,
        activation=timm_activation(config.hidden_act, ("gelu", "quick_gelu")),
        class_token=True,
        pre_norm=True,
    )
    if state is not None:
        state = clip_vision_to_timm(state, config.num_hidden_layers)
    return build_plain_vit(
        tower, image_size, state, drop_path=drop_path, dtype=dtype, features=features
    )


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
        image_size: Side in pixels; None takes the size that the model was made for.
        state: Weights under timm's names, of all blocks; None leaves random weights.
        drop_path: Stochastic depth, when the encoder is finetuned.
        dtype: Number format of the loaded weights.
        features: Settled choice of block, norm and tokens.
        sizes: timm's arguments that change the named model (`embed_dim`, `depth`).

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
    """A whole timm model on the meta device: sizes without memory.

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
    """Freezes a model in place: no gradients, and eval mode for good (`train()` does nothing).

    Args:
        module: The model.
        dtype: Number format that its weights are turned to; None keeps theirs.
    """
    module.requires_grad_(False).eval()
    if dtype is not None:
        module.to(dtype)
    for part in module.modules():
        part.train = partial(_stay_in_eval, part)  # type: ignore[method-assign]
    return module


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
