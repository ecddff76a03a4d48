"""Image encoders from timm's vision transformers, as BLIP-2 uses them (paper, section 4.1).

Legend: B images, P image tokens (1 class token + patches), D width. The output is what enters the
last block: that block is not built, there is no final norm and no pooling, and all tokens are kept,
class token first.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from modeling.linear import faster_products
from modeling.weights import clip_vision_to_timm

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Vit = VisionTransformer | Eva
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}


class ImageEncoder(nn.Module):
    """A timm ViT whose tokens are read before its last block."""

    def __init__(self, vit: Vit) -> None:
        super().__init__()
        self.vit = faster_products(vit)
        self.width: int = vit.embed_dim
        self.image_size: int = vit.patch_embed.img_size[0]
        self.num_tokens: int = vit.patch_embed.num_patches + vit.num_prefix_tokens

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Tokens (B, P, D) of normalised images; images are cast to the weights' dtype."""
        # Called, not its `forward_features`: hooks of an engine around it must run.
        return self.vit(images_B3HW.to(self.vit.patch_embed.proj.weight.dtype))

    def checkpoint_blocks(self, enable: bool = True) -> None:
        """Recomputes activations block by block in the backward pass (finetuning at high
        resolution).
        """
        self.vit.set_grad_checkpointing(enable)


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

    Raises:
        ValueError: The image size or a key of the state does not fit.
    """
    _check_image_size(image_size, config.patch)
    make = partial(
        Eva,
        img_size=image_size,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.blocks,
        num_heads=config.heads,
        mlp_ratio=_mlp_ratio(config.mlp, config.width),
        norm_layer=partial(LayerNorm, eps=config.eps),
        use_post_transformer_norm=False,
        num_classes=0,
        global_pool="",
        drop_path_rate=drop_path,
    )
    return ImageEncoder(_build(make, state, dtype))


def build_clip_encoder(
    config: CLIPVisionConfig,
    image_size: int,
    state: Mapping[str, Tensor] | None = None,
    drop_path: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> ImageEncoder:
    """The vision tower of a Hugging Face CLIP without its last block, `ln_pre` kept.

    Args:
        config: `CLIPVisionConfig` of the weights.
        image_size: Side in pixels, a multiple of the patch size; position embeddings are resized
            to it.
        state: State dict of `CLIPModel` or `CLIPVisionModel`; None leaves random weights.
        drop_path: Stochastic depth when the encoder is finetuned.
        dtype: Of the loaded weights.

    Raises:
        ValueError: The image size, the activation or a key of the state does not fit.
    """
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(f"hidden_act = {config.hidden_act!r} is not one of {sorted(ACTIVATIONS)}.")
    patch_size = int(config.patch_size)  # type: ignore[arg-type]
    _check_image_size(image_size, patch_size)
    make = partial(
        VisionTransformer,
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers - 1,
        num_heads=config.num_attention_heads,
        mlp_ratio=_mlp_ratio(config.intermediate_size, config.hidden_size),
        pre_norm=True,
        final_norm=False,
        act_layer=ACTIVATIONS[config.hidden_act],
        norm_layer=partial(LayerNorm, eps=config.layer_norm_eps),
        num_classes=0,
        global_pool="",
        drop_path_rate=drop_path,
    )
    if state is not None:
        state = clip_vision_to_timm(state, config.num_hidden_layers)
    return ImageEncoder(_build(make, state, dtype))


def build_timm_encoder(
    name: str,
    image_size: int | None = None,
    state: Mapping[str, Tensor] | None = None,
    drop_path: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> ImageEncoder:
    """Any timm VisionTransformer or Eva by name, without its last block.

    `eva_giant_patch14_clip_224` is the paper's ViT-g (39 of 40 blocks, 985,894,528 parameters);
    `vit_large_patch14_clip_quickgelu_224` its ViT-L (mind `quickgelu`: OpenAI's weights need that
    activation).

    Args:
        name: timm model name.
        image_size: Side in pixels; None takes the model's own.
        state: State dict in timm's names, of all blocks; None leaves random weights.
        drop_path: Stochastic depth when the encoder is finetuned.
        dtype: Of the loaded weights.

    Raises:
        ValueError: Unknown name, another architecture, or a size or state that does not fit.
    """
    if not timm.is_model(name):
        raise ValueError(f"encoder {name!r} is not a timm model; see timm.list_models('*vit*').")
    with torch.device("meta"):
        whole = timm.create_model(name)
    if not isinstance(whole, VisionTransformer | Eva):
        raise ValueError(
            f"encoder {name!r} is a {type(whole).__name__}; a VisionTransformer or Eva is needed."
        )
    size = image_size or whole.patch_embed.img_size[0]
    _check_image_size(size, whole.patch_embed.patch_size[0])
    norm = "final_norm" if isinstance(whole, VisionTransformer) else "use_post_transformer_norm"
    options: dict[str, Any] = {norm: False, "drop_path_rate": drop_path}
    make: Any = partial(
        timm.create_model,
        name,
        img_size=size,
        depth=len(whole.blocks) - 1,
        num_classes=0,
        global_pool="",
        **options,
    )
    return ImageEncoder(_build(make, state, dtype))


def _build(make: Callable[[], Vit], state: Mapping[str, Tensor] | None, dtype: torch.dtype) -> Vit:
    """A tower with the weights of `state`, made without first filling it with random ones."""
    if state is None:
        return make()
    with torch.device("meta"):
        vit = make()
    buffers = dict(vit.named_buffers())
    if any(not name.endswith("attn.k_bias") for name in buffers):
        vit = make()  # some are computed at construction (rotary embeddings), so it must be real
    for name, buffer in buffers.items():
        module, _, kind = name.rpartition(".")
        if kind == "k_bias":  # keys have no bias: timm adds these zeros
            zeros = torch.zeros_like(buffer, dtype=dtype, device="cpu")
            vit.get_submodule(module).register_buffer(kind, zeros, persistent=False)
    load_vit(vit, state, dtype)
    return vit


def _mlp_ratio(mlp: int, width: int) -> float:
    """A ratio from which timm's `int(width * ratio)` makes `mlp` again, whatever the rounding."""
    return (mlp + 0.5) / width


def load_vit(vit: Vit, state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    """Puts timm-named weights into a tower in place of its own; position embeddings are resized,
    and only the parts not built here may be left over.

    Args:
        vit: The tower; may be on the meta device.
        state: Weights in any dtype; they are copied.
        dtype: What the tower's weights get.

    Raises:
        ValueError: Missing or unexpected keys or other shapes, named.
    """
    own = vit.state_dict()
    unused = ("norm.", "fc_norm.", "head.", f"blocks.{len(vit.blocks)}.")
    left_over = [key for key in state if key not in own and not key.startswith(unused)]
    missing = [key for key in own if key not in state]
    if left_over or missing:
        raise ValueError(
            f"encoder weights do not fit: missing {missing[:5]}, unexpected {left_over[:5]}; "
            "give the weights of this architecture."
        )
    kept = {key: tensor for key, tensor in state.items() if key in own}
    if "pos_embed" in kept:
        prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        kept["pos_embed"] = resize_positions(
            kept["pos_embed"].float(), vit.patch_embed.num_patches, prefix
        )
    for key, tensor in kept.items():
        if tensor.shape != own[key].shape:
            raise ValueError(
                f"encoder weight {key} has shape {tuple(tensor.shape)}, not "
                f"{tuple(own[key].shape)}; give the weights of this architecture."
            )
    copies = {key: tensor.to(dtype, copy=True) for key, tensor in kept.items()}
    vit.load_state_dict(copies, assign=True)


def resize_positions(positions_1PD: Tensor, patches: int, prefix: int = 1) -> Tensor:
    """Position embeddings for another square number of patches: bicubic in fp32, those of the
    `prefix` tokens (the class token) kept as they are.

    Raises:
        ValueError: The embeddings are not those of a square of patches.
    """
    old = positions_1PD.shape[1] - prefix
    if old == patches:
        return positions_1PD
    old_side, new_side = math.isqrt(max(old, 0)), math.isqrt(patches)
    if old < 1 or old_side**2 != old:
        raise ValueError(
            f"pos_embed has {positions_1PD.shape[1]} positions, which are not {prefix} and a "
            "square of patches: give the weights of this architecture."
        )
    class_11D, grid = positions_1PD[:, :prefix], positions_1PD[:, prefix:].float()
    grid = grid.reshape(1, old_side, old_side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    grid = grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions_1PD.dtype)
    return torch.cat((class_11D, grid), 1)


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


def _check_image_size(image_size: int, patch_size: int) -> None:
    if image_size < patch_size or image_size % patch_size:
        below = max(1, image_size // patch_size) * patch_size
        raise ValueError(
            f"image_size = {image_size} must be a multiple of the patch size {patch_size}: "
            f"take {below} or {below + patch_size}."
        )
