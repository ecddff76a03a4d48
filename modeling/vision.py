"""Image encoders from timm's vision transformers, as BLIP-2 uses them (paper, section 4.1).

Legend: B images, P image tokens (1 class token + patches), D width. The output is what enters the
    last block: the last block is
not built, there is no final norm and no pooling, and all tokens are kept, class token first.
"""

from collections.abc import Mapping
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

from modeling.weights import clip_vision_to_timm

ModuleT = TypeVar("ModuleT", bound=nn.Module)
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}


class ImageEncoder(nn.Module):
    """A timm ViT whose tokens are read before its last block."""

    def __init__(self, vit: VisionTransformer | Eva) -> None:
        super().__init__()
        self.vit = vit
        self.width: int = vit.embed_dim
        self.image_size: int = vit.patch_embed.img_size[0]
        self.num_tokens: int = vit.patch_embed.num_patches + vit.num_prefix_tokens

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Tokens (B, P, D) of normalised images; images are cast to the weights' dtype."""
        return self.vit.forward_features(images_B3HW.to(self.vit.patch_embed.proj.weight.dtype))

    def checkpoint_blocks(self, enable: bool = True) -> None:
        """Recomputes activations block by block in the backward pass (finetuning at high
        resolution).
        """
        self.vit.set_grad_checkpointing(enable)


def build_clip_encoder(
    config: CLIPVisionConfig,
    image_size: int,
    state: Mapping[str, Tensor] | None = None,
    drop_path: float = 0.0,
) -> ImageEncoder:
    """The vision tower of a Hugging Face CLIP without its last block, `ln_pre` kept.

    Args:
        config: `CLIPVisionConfig` of the weights.
        image_size: Side in pixels, a multiple of the patch size; position embeddings are resized
            to it.
        state: State dict of `CLIPModel` or `CLIPVisionModel`; None leaves random weights.
        drop_path: Stochastic depth when the encoder is finetuned.

    Raises:
        ValueError: The image size, the activation or a key of the state does not fit.
    """
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(f"hidden_act = {config.hidden_act!r} is not one of {sorted(ACTIVATIONS)}.")
    patch_size = int(config.patch_size)  # type: ignore[arg-type]
    _check_image_size(image_size, patch_size)
    vit = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers - 1,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        pre_norm=True,
        final_norm=False,
        act_layer=ACTIVATIONS[config.hidden_act],
        norm_layer=partial(LayerNorm, eps=config.layer_norm_eps),
        num_classes=0,
        global_pool="",
        drop_path_rate=drop_path,
    )
    if state is not None:
        load_vit(vit, clip_vision_to_timm(state, config.num_hidden_layers))
    return ImageEncoder(vit)


def build_timm_encoder(
    name: str,
    image_size: int | None = None,
    state: Mapping[str, Tensor] | None = None,
    drop_path: float = 0.0,
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
    vit: Any = timm.create_model(
        name,
        img_size=size,
        depth=len(whole.blocks) - 1,
        num_classes=0,
        global_pool="",
        **options,
    )
    if state is not None:
        load_vit(vit, state)
    return ImageEncoder(vit)


def load_vit(vit: VisionTransformer | Eva, state: Mapping[str, Tensor]) -> None:
    """Loads timm-named weights; position embeddings are resized, and only the parts not built here
    may be left over.

    Raises:
        ValueError: Missing or unexpected keys, named.
    """
    own = vit.state_dict()
    unused = ("norm.", "fc_norm.", "head.", f"blocks.{len(vit.blocks)}.")
    left_over = [key for key in state if key not in own and not key.startswith(unused)]
    missing = [key for key in own if key not in state]
    if left_over or missing:
        raise ValueError(
            f"encoder weights do not fit: missing {missing[:5]}, unexpected {left_over[:5]}."
        )
    kept = {key: tensor for key, tensor in state.items() if key in own}
    if "pos_embed" in kept:
        kept["pos_embed"] = resize_positions(kept["pos_embed"], vit.patch_embed.num_patches)
    for key, tensor in kept.items():
        if tensor.shape != own[key].shape:
            raise ValueError(
                f"encoder weight {key} has shape {tuple(tensor.shape)}, "
                f"not {tuple(own[key].shape)}."
            )
    vit.load_state_dict(kept)


def resize_positions(positions_1PD: Tensor, patches: int) -> Tensor:
    """Position embeddings for another square number of patches: bicubic in fp32, the class token's
    kept as it is.
    """
    old = positions_1PD.shape[1] - 1
    if old == patches:
        return positions_1PD
    old_side, new_side = round(old**0.5), round(patches**0.5)
    class_11D, grid = positions_1PD[:, :1], positions_1PD[:, 1:].float()
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
