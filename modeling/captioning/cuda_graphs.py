"""Replay of steps that run the same kernels on the same memory, as CUDA graphs."""

import warnings
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


class Steps:
    """Runs functions of tensors by key: plainly at first, then recorded and replayed.

    A function is recorded at the second call with its key. It may only use its arguments, which are
    copied to memory of their own, and tensors that keep their memory. The next call, with any key,
    overwrites its result: results of one shape share one tensor, since those of all recorded steps
    would be some 2 GB at 64 images.

    Args:
        record: function that takes a function without arguments, and returns a function that runs
            it again and the result, which is overwritten; None runs every call plainly.
    """

    def __init__(self, record: Record | None = None) -> None:
        self._record = record
        self._seen: dict[Hashable, tuple[torch.Size, torch.dtype, torch.device]] = {}
        self._recorded: dict[Hashable, tuple[list[Tensor], Callable[[], None], Tensor]] = {}
        self._results: dict[Hashable, Tensor] = {}

    @classmethod
    def on(cls, device: torch.device) -> "Steps":
        """Steps for a device: replayed as CUDA graphs on a GPU, plain elsewhere."""
        return cls(_CudaGraphs().record if device.type == "cuda" else None)

    @property
    def replays(self) -> bool:
        """Whether steps are recorded and replayed."""
        return self._record is not None

    def clear(self) -> None:
        """Forget all recordings, before the memory that they use is freed."""
        self._seen.clear()
        self._recorded.clear()
        self._results.clear()

    def __call__(self, key: Hashable, function: Callable[..., Tensor], *given: Tensor) -> Tensor:
        """``function(*given)``.

        Raises:
            torch.OutOfMemoryError: the function's own.
        """
        if key in self._recorded:
            inputs, again, result = self._recorded[key]
            for mine, new in zip(inputs, given, strict=True):
                mine.copy_(new)
            again()
            return result
        if self._record is None or key not in self._seen:  # the first call also warms kernels up
            made = function(*given)
            self._seen[key] = _form(made)
            return made
        inputs, form = [tensor.clone() for tensor in given], self._seen[key]
        shared = self._results.get(form)
        if shared is None:
            shape, dtype, device = form
            shared = self._results[form] = torch.empty(shape, dtype=dtype, device=device)
        try:
            again, result = self._record(lambda: shared.copy_(function(*inputs)))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as refused:  # a kernel that cannot be recorded: slower, not wrong
            warnings.warn(f"steps run without CUDA graphs ({refused})", stacklevel=2)
            self._record = None
            self.clear()
            return function(*given)
        self._recorded[key] = inputs, again, result
        again()
        return result


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


class _CudaGraphs:
    """CUDA graphs that share one pool of memory, since they run one after the other."""

    def __init__(self) -> None:
        self._alive: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
        self._pool: Any = None

    def record(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record a function on the current device; nothing runs yet."""
        if not self._alive:  # torch gives a pool up with its last graph, and refuses it then
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = function()
        self._alive.add(graph)
        return graph.replay, result
