"""The optimizer's settings: learning rate by step, weight-decay groups, layer-wise decay.

Paper: section 3.4 and tables 7-9.
"""

import math
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

ALIGNED = 64  # elements: 128 bytes of bf16
BRIDGE = "bridge."
NO_DECAY = ("query_tokens", "temperature", "cls_token", "pos_embed")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay; the defaults are stage 1's (section 3.4).

    Attributes:
        lr: highest learning rate.
        min_lr: learning rate of the last step; the reference's, since the paper does not tell it.
        warmup_lr: learning rate of the first step; the reference's, for the same reason.
        warmup_steps: optimizer steps of linear warm-up.
        total_steps: optimizer steps of the run.
        betas: AdamW's decay rates of the two moments.
        eps: AdamW's epsilon.
        weight_decay: AdamW's weight decay.
        bridge_lr: highest learning rate of LLaVA's bridge, whose schedule is the same; 0: `lr`.
        layer_decay: factor of the learning rate from one block of a finetuned image encoder to the
            block below it (tables 7-9); 1: none.
    """

    lr: float = 1e-4
    min_lr: float = 1e-5
    warmup_lr: float = 1e-6
    warmup_steps: int = 2000
    total_steps: int = 250_000
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    bridge_lr: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(
                f"optim.warmup_steps = {self.warmup_steps} must be less than "
                f"optim.total_steps = {self.total_steps}."
            )
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(
                f"optim.min_lr = {self.min_lr} must lie between 0 and optim.lr = {self.lr}."
            )
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optim.layer_decay = {self.layer_decay} must lie in (0, 1].")
        if self.bridge_lr < 0 or (self.bridge_lr and not self.lr):
            raise ValueError(
                f"optim.bridge_lr = {self.bridge_lr}: give 0 or more, and an optim.lr."
            )


def learning_rate(config: OptimConfig, step: int) -> float:
    """Learning rate of an optimizer step, counted from 0.

    It rises linearly to `lr` and then falls to `min_lr` as a cosine.
    """
    if step < config.warmup_steps:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / config.warmup_steps
    progress = (step - config.warmup_steps) / (config.total_steps - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return config.min_lr + (config.lr - config.min_lr) * cosine


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate of every group: `lr` times the group's `lr_scale`.

    So layer-wise decay has its effect at every step.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def parameter_groups(
    model: nn.Module, config: OptimConfig, encoder_prefix: str = "encoder.vit."
) -> list[dict]:
    """Trainable parameters in groups of one weight decay and one scale of the learning rate.

    Biases, norms, query tokens, the temperature, and a ViT's position and class embeddings have no
    weight decay. Blocks of an encoder have the learning rate lr × layer_decay^(distance from the
    top), LLaVA's bridge has bridge_lr, all other parameters lr.

    Args:
        model: The module that trains.
        config: Settings of the optimizer.
        encoder_prefix: Prefix of the names of the encoder's parameters.

    In a group, parameters whose number of elements is no multiple of `ALIGNED` come last. DeepSpeed
    lays a group's weights one behind the other: with the temperature's single element in front,
    every bias of the model began at an odd place, and a GPU's products took kernels for unaligned
    memory (a quarter of the device's time in stage 1 on an H200).

    Returns:
        Groups for torch or DeepSpeed optimizers with `params`, `lr`, `lr_scale`, `weight_decay`
        and `names`.
    """
    depth = _encoder_depth(model, encoder_prefix)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in sorted(model.named_parameters(), key=_unaligned):
        if not parameter.requires_grad:
            continue
        decay = config.weight_decay if is_decayed(name, parameter.ndim) else 0.0
        scale = config.layer_decay ** _distance_from_top(name, encoder_prefix, depth)
        if config.bridge_lr and name.startswith(BRIDGE):
            scale = config.bridge_lr / config.lr
        group = groups.setdefault(
            (decay, scale),
            {
                "params": [],
                "names": [],
                "weight_decay": decay,
                "lr": config.lr * scale,
                "lr_scale": scale,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _unaligned(named: tuple[str, nn.Parameter]) -> tuple[bool, int]:
    """Orders what leaves the next parameter aligned before the rest, of which the longest is first;
    otherwise the order stays.
    """
    count = named[1].numel()
    return (True, -count) if count % ALIGNED else (False, 0)


def is_decayed(name: str, ndim: int) -> bool:
    """Whether weight decay applies to a parameter."""
    return ndim > 1 and name.rpartition(".")[2] not in NO_DECAY


def _encoder_depth(model: nn.Module, prefix: str) -> int:
    blocks = {
        name.removeprefix(prefix).split(".")[1]
        for name, _ in model.named_parameters()
        if _is_block(name, prefix)
    }
    return len(blocks)


def _distance_from_top(name: str, prefix: str, depth: int) -> int:
    """0 outside the encoder, 1 for its last block, depth + 1 for its embeddings."""
    if not name.startswith(prefix):
        return 0
    if _is_block(name, prefix):
        return depth - int(name.removeprefix(prefix).split(".")[1])
    return depth + 1


def _is_block(name: str, prefix: str) -> bool:
    return name.startswith(f"{prefix}blocks.")
