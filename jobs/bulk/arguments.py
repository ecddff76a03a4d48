"""Options that the jobs over many images share."""

import os
from dataclasses import dataclass

import torch

from jobs.prediction.arithmetic import PredictDtype


@dataclass(frozen=True)
class WorkArgs:
    """How the work is done, shared and kept."""

    device: str = "auto"
    """cpu or cuda; auto: cuda where there is a GPU"""
    dtype: PredictDtype = "auto"
    """number format of the frozen models. recipe: as in training. auto: the same, except fp32 in
    place of bf16 on a device without bf16 instructions"""
    batch_size: int = 16
    """number of images that are read together, and of texts in one forward pass"""
    chunk: int = 64
    """number of images, about, whose results are kept together in one file"""
    workers: int = 0
    """number of worker processes, each of which loads the checkpoint; 0: no others; with --address
    0 means one for each GPU (or CPU, where there are no GPUs)"""
    address: str | None = None
    """Ray cluster whose nodes run the workers: auto, HOST:PORT or ray://...; default: that of
    RAY_ADDRESS, else this machine"""
    threads: int = 0
    """number of CPU threads of a worker; 0: one for each of several workers, all cores for this
    process alone"""
    replace: bool = False
    """remove the results that are there, and make them again"""

    def __post_init__(self) -> None:
        least = {"workers": 0, "threads": 0, "chunk": 1, "batch_size": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} {getattr(self, name)}: give at least {bound}")

    @property
    def cluster(self) -> str | None:
        """Address of the Ray cluster, if one is meant."""
        return self.address or os.environ.get("RAY_ADDRESS")

    @property
    def uses_ray(self) -> bool:
        """Whether workers on a Ray do the work, and not this process."""
        return self.workers > 0 or self.cluster is not None

    def threads_of(self, begun: dict) -> int:
        """CPU threads of a worker: those asked for, or those of the results that are there."""
        alone = 1 if self.uses_ray else torch.get_num_threads()
        return self.threads or begun.get("threads") or alone
