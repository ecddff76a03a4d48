"""Small layers of both stages: the norm of image tokens, and a clamp that gradients can leave."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VisionNorm(nn.LayerNorm):
    """LayerNorm of the image encoder's output: eps 1e-5, computed in fp32.

    The result has the dtype of the norm's weight.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-5)

    def forward(self, tokens_BPD: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        normed = F.layer_norm(tokens_BPD.float(), self.normalized_shape, weight, bias, self.eps)
        return normed.to(self.weight.dtype)


class Bounded(torch.autograd.Function):
    """Clamp to [low, high] whose gradient can lead back inside.

    Outside the bounds only a gradient that points inwards passes, so that a parameter that left
    them can return.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, low: float, high: float
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = (low, high)  # type: ignore[attr-defined]
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds
        outward = ((x < low) & (grad > 0)) | ((x > high) & (grad < 0))
        return grad.masked_fill(outward, 0), None, None
