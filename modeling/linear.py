"""Linear layers whose products on CPU go through oneDNN.

torch gives fp32 products on CPU to MKL, which on AMD processors reaches less than half of what
oneDNN does there, with the same AVX-512 units (2 cores of an EPYC: 79 against 185 GFLOP/s for 2056
x 1408 by 1408 x 768; on Intel's the two are equal). bf16 goes to oneDNN already, other devices
have libraries of their own.

Legend: N rows, D width in, O width out; leading dimensions are rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# What torch's own compiler emits for a linear layer on CPU; absent where torch has no oneDNN.
_OP: Any = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if torch.backends.mkldnn.is_available()
    else None
)
# Elements of a weight; below, the call costs more than the product. Rows have no say, so that one
# library makes all of a model's products at any batch size (the oneDNN of torch 2.14 then gave a
# row the same bits among any others, two or more; that of 2.11 among 33 or more).
_WORTH_IT = 1 << 14
_wanted = ContextVar("oneDNN is wanted", default=True)


class Linear(nn.Linear):
    """`nn.Linear` with the same parameters and names."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`F.linear`, by oneDNN where that is the faster library."""
    if not by_onednn(x, weight_OD):
        return F.linear(x, weight_OD, bias_O)
    out: Tensor = _Product.apply(x, weight_OD, bias_O)
    return out


def product(a_ND: Tensor, b_OD: Tensor) -> Tensor:
    """a b^T (N, O) of matrices in any layout, without a gradient."""
    if by_onednn(a_ND, b_OD):
        return _product(a_ND, b_OD)
    return a_ND @ b_OD.t()


def by_onednn(x: Tensor, weight_OD: Tensor) -> bool:
    """Whether `linear` takes oneDNN for these operands."""
    return (
        _OP is not None
        and _wanted.get()
        and x.dtype == weight_OD.dtype == torch.float32
        and x.device.type == weight_OD.device.type == "cpu"
        and weight_OD.numel() >= _WORTH_IT
        and x.numel() > 0  # it has no products of nothing
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def faster_products(module: ModuleT) -> ModuleT:
    """Gives a foreign model's plain linear layers `Linear`'s forward pass, in place."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear
    return module


@contextmanager
def torchs_products() -> Iterator[None]:
    """Inside, `linear` is `F.linear`: for comparisons."""
    before = _wanted.set(False)
    try:
        yield
    finally:
        _wanted.reset(before)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad  # nothing is kept for a gradient nobody wants
        ctx.save_for_backward(x if of_weight else None, weight_OD if of_x else None)
        return _product(x, weight_OD, bias_O)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight_OD = ctx.saved_tensors
        grad_NO = grad.flatten(0, -2)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _product(grad, weight_OD.t())
        if ctx.needs_input_grad[1]:
            of_weight = _product(grad_NO.t(), x.flatten(0, -2).t())
        if ctx.needs_input_grad[2]:
            of_bias = grad_NO.sum(0)
        return of_x, of_weight, of_bias


def _product(x: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    out: Tensor = _OP(x, weight_OD, bias_O, "none", [], "")
    return out


if _OP is not None:

    @register_flop_formula(_OP)
    def _count(x_shape: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
        """FLOPs for torch's counter, as it counts matrix products."""
        rows = 1
        for size in x_shape[:-1]:
            rows *= size
        return 2 * rows * weight_shape[0] * weight_shape[1]
