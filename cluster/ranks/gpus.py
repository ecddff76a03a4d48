"""GPUs of this machine that torch cannot use: told as a mistake, where torch falls back to the CPU.

torch answers "no GPU" in the same way whether there is none, its driver is too old, or the
container was not given it; a run would then train on the CPU, a hundred times slower.
"""

import os
import warnings
from pathlib import Path

import torch

_DRIVER = Path("/proc/driver/nvidia/version")


def check_gpus(driver: Path = _DRIVER) -> None:
    """Refuse to go on without the GPUs of a machine that has some.

    Args:
        driver: file that exists where NVIDIA's driver is loaded.

    Raises:
        ValueError: torch cannot use the GPU, or was built without its generation, and nobody asked
            for the CPU.
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu" or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        if wrong := too_old(major, minor, torch.cuda.get_arch_list()):
            raise ValueError(f"{torch.cuda.get_device_name()}: {wrong}")
    elif driver.exists():
        raise ValueError(
            f"this machine has NVIDIA's driver, but torch cannot use its GPU ({why_no_gpu()}); "
            "mend that, or set DS_ACCELERATOR=cpu to train on the CPU"
        )


def too_old(major: int, minor: int, built_for: list[str]) -> str:
    """Why this torch has no kernels for a GPU's compute capability; "" where it has.

    Args:
        built_for: torch's list of architectures, such as ``["sm_80", "sm_90"]``.
    """
    numbers = [int(name.removeprefix("sm_").rstrip("af")) for name in built_for if "sm_" in name]
    oldest = min(numbers, default=0)
    if 10 * major + minor >= oldest:
        return ""
    return (
        f"compute capability {major}.{minor}, but this torch is built for "
        f"{oldest // 10}.{oldest % 10} and later; use a newer GPU or an older torch, or set "
        "DS_ACCELERATOR=cpu"
    )


def why_no_gpu() -> str:
    """torch's own reason for finding no GPU, in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as told:
            return str(told).strip().splitlines()[0]
    return "torch gives no reason"
