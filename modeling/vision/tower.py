"""The module of all image encoders: how it is built, its weights, positions of other sizes.

Shapes: see `modeling`; S special tokens (class token and registers).
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from modeling.linear import faster_products
from modeling.vision.features import FeatureConfig

Vit = VisionTransformer | Eva


class ImageEncoder(nn.Module):
    """A timm ViT with only the blocks that are used, and without pooling.

    Args:
        vit: The tower; its output is all of its tokens, special ones first.
        tokens: Choice of the tokens that are kept, as in `FeatureConfig`.
    """

    def __init__(self, vit: Vit, tokens: str = "all") -> None:
        super().__init__()
        self.vit = faster_products(vit)
        self.width: int = vit.embed_dim
        self.image_size: int = vit.patch_embed.img_size[0]
        self._special: int = vit.num_prefix_tokens  # in front of the patches
        self._kept = self._special if tokens == "all" else 0  # of these, the first ones
        if tokens == "class" and vit.cls_token is not None:
            self._kept = 1
        self.num_tokens: int = vit.patch_embed.num_patches + self._kept

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Tokens (B, P, D) of normalised images; images are cast to the weights' dtype."""
        # Called, not its `forward_features`: hooks of an engine around it must run.
        tokens_BPD = self.vit(images_B3HW.to(self.vit.patch_embed.proj.weight.dtype))
        if self._kept == self._special:
            return tokens_BPD
        special_BSD, patches_BPD = tokens_BPD[:, : self._kept], tokens_BPD[:, self._special :]
        return torch.cat((special_BSD, patches_BPD), 1)

    def checkpoint_blocks(self, enable: bool = True) -> None:
        """Recomputes activations block by block in the backward pass, to save memory."""
        self.vit.set_grad_checkpointing(enable)


def build(make: Callable[[], Vit], state: Mapping[str, Tensor] | None, dtype: torch.dtype) -> Vit:
    """A tower with the weights of `state`, made without first filling it with random ones.

    Args:
        make: Function that returns a tower with random weights.
        state: Weights under timm's names; None keeps the random ones.
        dtype: Number format of the weights of `state` in the tower.

    Raises:
        ValueError: `state` does not fit (`load_vit`).
    """
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


def timm_options(
    *,
    image_size: int,
    width: int,
    blocks: int,
    heads: int,
    mlp: int,
    patch: int,
    eps: float,
    drop_path: float,
    features: FeatureConfig,
) -> dict[str, Any]:
    """Arguments that timm's VisionTransformer and Eva share, for a tower without pooling and head.

    Args:
        image_size: Side of an image in pixels.
        width: Width of the hidden states.
        blocks: Blocks of the whole model; those after the chosen features are not built.
        heads: Attention heads.
        mlp: Width of the MLP's hidden layer; for a SwiGLU in one matrix, both halves.
        patch: Side of a patch in pixels.
        eps: Epsilon of the norms.
        drop_path: Stochastic depth.
        features: Settled choice of block, norm and tokens.

    Raises:
        ValueError: The chosen block is before the first one.
    """
    return {
        "img_size": image_size,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth(blocks, features),
        "num_heads": heads,
        "mlp_ratio": (mlp + 0.5) / width,  # timm's int(width * ratio) is `mlp` again
        "norm_layer": partial(LayerNorm, eps=eps),
        "num_classes": 0,
        "global_pool": "",
        "drop_path_rate": drop_path,
    }


def depth(blocks: int, features: FeatureConfig) -> int:
    """Number of a model's blocks that are built.

    Raises:
        ValueError: The layer asked for is before the first block.
    """
    built = blocks + 1 + features.layer
    if built < 1:
        raise ValueError(
            f"encoder.features.layer = {features.layer}: this encoder has {blocks} blocks; "
            f"give {-blocks} to -1."
        )
    return built


def load_vit(vit: Vit, state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    """Loads weights under timm's names into a tower; position embeddings are resized to it.

    Args:
        vit: The tower; may be on the meta device.
        state: Weights in any dtype, copied. Weights of parts that are not built may be among them.
        dtype: Number format of the tower's weights.

    Raises:
        ValueError: Missing or unexpected keys or other shapes, named.
    """
    own = vit.state_dict()
    left_over = [key for key in state if key not in own and not _not_built(key, len(vit.blocks))]
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


def _not_built(key: str, blocks: int) -> bool:
    """Whether a weight belongs to a part left out: later blocks, final norm, pooling, head."""
    if key.startswith("blocks."):
        return int(key.split(".")[1]) >= blocks
    return key.startswith(("norm.", "fc_norm.", "head.", "attn_pool."))


def resize_positions(
    positions_1PD: Tensor, patches: int, prefix: int = 1, mode: str = "bicubic"
) -> Tensor:
    """Position embeddings for another square grid of patches, interpolated in fp32.

    Args:
        positions_1PD: Position embeddings of `prefix` tokens, then of a square grid.
        patches: Patches of the new grid, a square number.
        prefix: Special tokens with a position; theirs are kept as they are.
        mode: "bicubic", or "bilinear", which is anti-aliased.

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
    smooth = mode == "bilinear"
    grid = F.interpolate(
        grid, size=(new_side, new_side), mode=mode, align_corners=False, antialias=smooth
    )
    grid = grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions_1PD.dtype)
    return torch.cat((class_11D, grid), 1)


def check_image_size(image_size: int, patch_size: int, own: int = 0) -> None:
    """Checks that patches cover an image.

    Args:
        image_size: Side of the image in pixels.
        patch_size: Side of a patch in pixels.
        own: Image size that the model was made for, allowed even where a strip at the right and at
            the bottom is in no patch (SigLIP's 384 px in patches of 14).

    Raises:
        ValueError: They do not cover it; the message names the two nearest sizes that fit.
    """
    if image_size < patch_size or (image_size % patch_size and image_size != own):
        below = max(1, image_size // patch_size) * patch_size
        raise ValueError(
            f"image_size = {image_size} must be a multiple of the patch size {patch_size}: "
            f"take {below} or {below + patch_size}."
        )
