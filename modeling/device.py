"""The device that a name means."""

import torch


def pick_device(name: str) -> str:
    """torch's name of a device; ``auto`` is ``cuda`` where there is a GPU, else ``cpu``.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: this machine has no CUDA device; use cpu, or auto")
    return name
