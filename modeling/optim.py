"""Learning-rate schedule per step, weight-decay groups and layer-wise decay (paper, section 3.4
and tables 7-9).
"""

import math
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

ALIGNED = 64  # elements: 128 bytes of bf16
NO_DECAY = ("query_tokens", "temperature", "cls_token", "pos_embed")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay; the defaults are stage 1's (section 3.4)."""

    lr: float = 1e-4
    min_lr: float = 1e-5  # the paper is silent; the reference's value
    warmup_lr: float = 1e-6  # the paper is silent; the reference's value
    warmup_steps: int = 2000
    total_steps: int = 250_000
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.05
    layer_decay: float = 1.0  # of the image encoder's blocks when it is finetuned (tables 7-9)

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


def learning_rate(config: OptimConfig, step: int) -> float:
    """The learning rate of optimizer step `step`, counted from 0: linear up to `lr`, then cosine
    down to `min_lr`.
    """
    if step < config.warmup_steps:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / config.warmup_steps
    progress = (step - config.warmup_steps) / (config.total_steps - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return config.min_lr + (config.lr - config.min_lr) * cosine


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Gives every group its rate; a group's `lr_scale` survives, so layer-wise decay has its
    effect at every step.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def parameter_groups(
    model: nn.Module, config: OptimConfig, encoder_prefix: str = "encoder.vit."
) -> list[dict]:
    """Trainable parameters by weight decay and learning-rate scale.

    Biases, norms, query tokens, the temperature and ViT position and class embeddings are not
    decayed. Blocks of an encoder under `encoder_prefix` get lr × layer_decay^(distance from the
    top), everything else lr.

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
