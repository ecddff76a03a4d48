"""Small configurations and batches that the model tests share."""

import torch
from torch import Tensor

from modeling import contrast
from modeling.blip2 import Stage1, Stage1Config
from modeling.qformer import QFormerConfig

VOCAB, PATCHES, ENCODER_WIDTH = 50, 5, 24


def qformer_config(**changes) -> QFormerConfig:
    values = {
        "width": 32,
        "layers": 4,
        "heads": 4,
        "ffn": 48,
        "queries": 3,
        "encoder_width": ENCODER_WIDTH,
        "vocab": VOCAB,
        "max_positions": 16,
        "dropout": 0.0,
    }
    return QFormerConfig(**(values | changes))


def stage1_config(**changes) -> Stage1Config:
    return Stage1Config(qformer_config(**changes), embed=16, dec_token_id=VOCAB - 1)


def sharpen(model: torch.nn.Module, seed: int = 1) -> None:
    """Larger random weights than at initialisation, so that no term of the comparison vanishes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("temperature"):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.15 * noise)


def sharp_stage1(**changes) -> Stage1:
    torch.manual_seed(0)
    model = Stage1(stage1_config(**changes))
    sharpen(model)
    return model


def batch(size: int, length: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Image tokens, ids from [CLS] = 1 to [SEP] = 2 of different length, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(size, PATCHES, ENCODER_WIDTH, generator=generator)
    ids = torch.randint(3, VOCAB - 1, (size, length), generator=generator)
    lengths = torch.randint(3, length + 1, (size,), generator=generator)
    mask = (torch.arange(length)[None] < lengths[:, None]).long()
    ids[:, 0] = 1
    ids[torch.arange(size), lengths - 1] = 2
    return tokens, ids * mask, mask


def accumulated(model: Stage1, micros: list[contrast.Pairs]) -> dict[str, Tensor]:
    """Mean losses and gradients, a backward pass a micro-batch."""
    means: dict[str, Tensor] = {}
    for losses in contrast.losses_in_turn(model, micros, frozen=True):
        (losses["loss"] / len(micros)).backward()
        for name, value in losses.items():
            means[name] = means.get(name, 0) + value.detach() / len(micros)
    return means | {f"grad.{name}": p.grad for name, p in model.named_parameters()}
