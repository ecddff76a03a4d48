"""The arithmetic on which the bits of answers depend, settled once for all workers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal

import torch

from cluster.storage.cache import default_folder
from modeling import linear
from modeling.precision import multiplies_bf16

PredictDtype = Literal["auto", "recipe", "bf16", "fp32"]
_LIBRARIES = ("torch", "transformers", "tokenizers", "timm", "pillow")


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic of all answers of an evaluation.

    Attributes:
        device: ``cpu``, ``cuda``, or the cluster's kinds of GPU.
        dtype: number format of the frozen models, settled.
        products: library of the matrix products on a CPU.
        threads: CPU threads of a worker.
    """

    device: str
    dtype: PredictDtype
    products: linear.Library
    threads: int

    def described(self) -> dict[str, Any]:
        """Its fields for a plan; on CPUs instructions and threads decide how sums are split."""
        fields = asdict(self)
        if self.device == "cpu":
            fields["device"] = f"cpu {torch.backends.cpu.get_cpu_capability()}"
        else:
            del fields["threads"], fields["products"]
        return fields


def settled(dtype: PredictDtype, threads: int, begun: Mapping[str, Any], device: str) -> Arithmetic:
    """The arithmetic of results that are there already, else this machine's.

    Args:
        dtype: number format of the frozen models, as it was asked for.
        threads: CPU threads of a worker.
        begun: ``Arithmetic.described`` of the results that are there; empty: there are none.
        device: device of the workers.
    """
    on_cpu = device == "cpu"
    if dtype == "auto":
        fast = not on_cpu or multiplies_bf16("cpu")
        dtype = begun.get("dtype") or ("recipe" if fast else "fp32")
    products: Any = begun.get("products")
    if products is None:
        linear.CHOICES.keep_in(default_folder())
        products = linear.forward_library() if on_cpu else "torch"
    return Arithmetic(device, dtype, products, threads)


def versions() -> dict[str, str]:
    """Versions of the libraries on which bits depend."""
    return {name: version(name) for name in _LIBRARIES}
