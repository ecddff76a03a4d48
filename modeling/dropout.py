"""Dropout that is cheap on a CPU: one random 16-bit number for each element.

torch's Bernoulli draws take longer than the matrix products beside them (24 x 64 x 768 elements on
one core: 22 ms against 2 ms). Other devices have a fused kernel and use it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """`nn.Dropout`; on CPU its rate is rounded to a 65,536th and the scale follows the rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p if self.training else 0.0)


def dropout(x: Tensor, rate: float) -> Tensor:
    """Sets elements to zero at a rate and scales the others; torch's default generator draws."""
    level = round(rate * _LEVELS)
    if level in (0, _LEVELS) or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    out: Tensor = _Dropped.apply(x, level)
    return out


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, level: int) -> Tensor:
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= level - _LEVELS // 2
        ctx.save_for_backward(kept)
        ctx.scale = _LEVELS / (_LEVELS - level)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(ctx.scale), None
