"""Linear layers whose fp32 products on a CPU are made by the faster of two libraries.

torch makes fp32 products with MKL; these layers may make them with oneDNN. Which one is faster, by
up to more than a factor of two, depends on the processor: oneDNN on AMD's with AVX-512 (2 cores of
an EPYC: 185 against 79 GFLOP/s for 2056 x 1408 by 1408 x 768), MKL on Intel's and on those with
AVX2 only; and for some layouts oneDNN has no fast kernel at all (a fifth of MKL's rate). So both
are timed: first on one shape for each of the three products of a layer, which takes a few
milliseconds; then, where oneDNN is clearly ahead, on the shape in question. torch makes bf16
products with oneDNN already, and other devices have libraries of their own.

A choice depends on the layer's shape and never on the number of rows, so that one library makes
all of a layer's products at any batch size. `Choices` can be saved and loaded, so that a resumed
run, or another process, computes with the same libraries.

Shapes: N rows (all leading dimensions), D width of the input, O width of the output.
"""

import functools
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from modeling.precision import threads_set

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Library = Literal["torch", "onednn"]
Kind = Literal["forward", "input", "weight"]  # x W^T and its gradients g W, g^T x

# What torch's own compiler emits for a linear layer on CPU; absent where torch has no oneDNN.
_OP: Any = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if torch.backends.mkldnn.is_available()
    else None
)
_WORTH_IT = 1 << 14  # elements of a weight; below, oneDNN's call costs more than the product
_AHEAD = 1.25  # times torch's rate that oneDNN must reach: nothing near a tie may flip between runs
_PROBE = (512, 512)  # the layer (O, D) that stands for all others of its kind
_KINDS: tuple[Kind, ...] = ("forward", "input", "weight")
_OVERRIDE = "ISTHMUS_PRODUCTS"
_forced: ContextVar[Library | None] = ContextVar("the library that is forced", default=None)


class Choices:
    """The library of each layer's products, found by timing when it is first asked for.

    Attributes:
        made: library by product, ``KIND OxD``, for all products asked for so far.
    """

    def __init__(self) -> None:
        self.made: dict[str, Library] = {}
        self._measured: dict[str, Library] = {}
        self._file: Path | None = None

    def library(self, kind: Kind, out: int, width: int) -> Library:
        """The library for one of the products of a layer with a weight (out, width)."""
        layer = f"{kind} {out}x{width}"
        if layer not in self.made:
            library = _faster(kind, *_PROBE)
            if library == "onednn" and (out, width) != _PROBE:
                library = _faster(kind, out, width)
            self.made[layer] = self._measured[layer] = library
            self._write()
        return self.made[layer]

    def keep_in(self, folder: Path) -> None:
        """Take over the choices of earlier processes on this machine, and save new ones there.

        Args:
            folder: folder on this machine, with a file for each kind of processor and version of
                torch. Without a file that can be read and written, timings are made again.
        """
        self._file = folder / f"products-{_machine()}.json"
        try:
            found = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return
        if isinstance(found, dict):
            self._measured |= {k: v for k, v in found.items() if v in ("torch", "onednn")}
            self.follow(self._measured)

    def _write(self) -> None:
        if self._file is None:
            return
        part = self._file.with_suffix(f".{os.getpid()}")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self._measured, indent=1, sort_keys=True))
            part.replace(self._file)
        except OSError:  # a full or read-only disk costs the next process some milliseconds
            part.unlink(missing_ok=True)

    def follow(self, made: Mapping[str, Library]) -> None:
        """Take over choices that this run or another process made before."""
        self.made.update(made)


CHOICES = Choices()
"""This process's choices."""


class Linear(nn.Linear):
    """`nn.Linear` with the same parameters and names."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`F.linear` whose three products are each made by the faster library."""
    if not _has_choice(x, weight_OD):
        return F.linear(x, weight_OD, bias_O)
    libraries = tuple(library(kind, *weight_OD.shape) for kind in _KINDS)
    if libraries == ("torch", "torch", "torch"):
        return F.linear(x, weight_OD, bias_O)
    out: Tensor = _Linear.apply(x, weight_OD, bias_O, libraries)
    return out


def product(x: Tensor, weight_OD: Tensor) -> Tensor:
    """x W^T (..., O), without a gradient."""
    if _has_choice(x, weight_OD) and library("forward", *weight_OD.shape) == "onednn":
        return _onednn(x, weight_OD)
    return x @ weight_OD.t()


def input_product(grad: Tensor, weight_OD: Tensor) -> Tensor:
    """g W (..., D), the gradient of a layer's input, without one of its own."""
    if _has_choice(grad, weight_OD) and library("input", *weight_OD.shape) == "onednn":
        return _onednn(grad, weight_OD.t())
    return grad @ weight_OD


def weight_product(grad_NO: Tensor, x_ND: Tensor) -> Tensor:
    """g^T x (O, D), the gradient of a layer's weight, without one of its own."""
    shape = grad_NO.shape[1], x_ND.shape[1]
    if _has_choice(x_ND, grad_NO, math.prod(shape)) and library("weight", *shape) == "onednn":
        return _onednn(grad_NO.t(), x_ND.t())
    return grad_NO.t() @ x_ND


def library(kind: Kind, out: int, width: int) -> Library:
    """The library for one of a layer's products: the forced one, else the faster one."""
    return _forced.get() or _override() or CHOICES.library(kind, out, width)


def forward_library() -> Library:
    """One library for the forward passes of all layers, found by a single timing."""
    if _OP is None:
        return "torch"
    return library("forward", *_PROBE)


def faster_products(module: ModuleT) -> ModuleT:
    """Turns a model's plain linear layers into `Linear`, in place."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear
    return module


@contextmanager
def products_by(name: Library) -> Iterator[None]:
    """Inside, one library makes all products that have a choice."""
    before = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(before)


def _has_choice(x: Tensor, y: Tensor, elements: int = 0) -> bool:
    """Whether both libraries can make a product.

    Args:
        x, y: factors.
        elements: number of elements of the layer's weight; 0: those of y.
    """
    return (
        _OP is not None
        and x.dtype == y.dtype == torch.float32
        and x.device.type == y.device.type == "cpu"
        and (elements or y.numel()) >= _WORTH_IT
        and x.numel() > 0  # oneDNN has no products of nothing
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def _machine() -> str:
    """A short name for processor, instructions and torch, which decide the timings."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or not x86: the short name must do
        pass
    parts = [cpu, torch.backends.cpu.get_cpu_capability(), torch.__version__]
    parts += [
        os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@functools.cache
def _override() -> Library | None:
    """The library that the environment variable names; None: none.

    Raises:
        ValueError: the name is no library's.
    """
    name = os.environ.get(_OVERRIDE, "auto")
    if name in ("torch", "onednn"):
        return "torch" if name == "torch" else "onednn"
    if name != "auto":
        raise ValueError(f"{_OVERRIDE}={name}: give auto, torch or onednn")
    return None


@functools.cache
def _faster(kind: Kind, out: int, width: int) -> Library:
    """The faster library for a product of this kind and shape.

    The time of one thread is compared, which other work on the machine hardly changes.
    """
    rows = min(256, max(32, (1 << 27) // (out * width)))
    x, weight, grad = torch.ones(rows, width), torch.ones(out, width), torch.ones(rows, out)
    runs: dict[Kind, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "forward": (lambda: x @ weight.t(), lambda: _onednn(x, weight)),
        "input": (lambda: grad @ weight, lambda: _onednn(grad, weight.t())),
        "weight": (lambda: grad.t() @ x, lambda: _onednn(grad.t(), x.t())),
    }
    shortest = [float("inf"), float("inf")]
    with torch.no_grad(), threads_set(1):
        for _ in range(6):
            for index, run in enumerate(runs[kind]):
                begun = time.thread_time()
                run()
                shortest[index] = min(shortest[index], time.thread_time() - begun)
    return "onednn" if shortest[0] > _AHEAD * shortest[1] else "torch"


class _Linear(torch.autograd.Function):
    """A linear layer with a library for each of its three products."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OD: Tensor, bias_O: Tensor | None, libraries: Sequence[Library]
    ) -> Tensor:
        forward, ctx.of_input, ctx.of_weight = libraries
        needs_x, needs_weight = ctx.needs_input_grad[:2]  # nothing is kept for an unwanted gradient
        ctx.save_for_backward(x if needs_weight else None, weight_OD if needs_x else None)
        if forward == "onednn":
            return _onednn(x, weight_OD, bias_O)
        return F.linear(x, weight_OD, bias_O)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OD = ctx.saved_tensors
        grad_NO = grad.flatten(0, -2)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            with products_by(ctx.of_input):
                of_x = input_product(grad, weight_OD)
        if ctx.needs_input_grad[1]:
            with products_by(ctx.of_weight):
                of_weight = weight_product(grad_NO, x.flatten(0, -2))
        if ctx.needs_input_grad[2]:
            of_bias = grad_NO.sum(0)
        return of_x, of_weight, of_bias, None


def _onednn(x: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    out: Tensor = _OP(x, weight_OD, bias_O, "none", [], "")
    return out


if _OP is not None:

    @register_flop_formula(_OP)
    def _count(x_shape: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
        """FLOPs of the product, for torch's counter."""
        rows = 1
        for size in x_shape[:-1]:
            rows *= size
        return 2 * rows * weight_shape[0] * weight_shape[1]
