"""The processes of a distributed run: rank and device, seeds, and the small messages they exchange.

Everything here also works without a process group, as in a run of a single rank.
"""

import hashlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from types import FrameType

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a distributed run.

    Attributes:
        rank: number among all processes.
        world: number of all processes.
        local_rank: number among the processes of its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def device(self) -> torch.device:
        """This process's accelerator, or the CPU where there is none."""
        if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda":
            return torch.device("cuda", self.local_rank)
        return torch.device("cpu")


def this_process() -> Process:
    """This process, as its launcher has described it in the environment; the only one without."""
    read = {key: int(os.environ.get(key, default)) for key, default in _LAUNCHER.items()}
    return Process(read["RANK"], read["WORLD_SIZE"], read["LOCAL_RANK"])


_LAUNCHER = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def have_met() -> bool:
    """Whether this process has joined the process group of its run."""
    return dist.is_available() and dist.is_initialized()


def derive_seed(*parts: object) -> int:
    """63-bit seed from any printable parts: the same on every machine and Python version."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_step(seed: int, step: int, micro: int) -> None:
    """Seed all of torch's generators for one micro-batch of a step, counted over all ranks.

    Dropout is thus a function of these: a resumed run needs no saved generator state, and one on
    another number of ranks draws the same for the same micro-batches.
    """
    torch.manual_seed(derive_seed("step", seed, step, micro))


def repeat_to_the_bit() -> None:
    """Let torch use deterministic algorithms only, before anything runs on a device.

    On the same devices, ranks and versions a run then repeats itself, and resumes, to the bit. An
    operation without such an algorithm raises a ``RuntimeError`` that names it. CPUs repeat
    themselves in any case.
    """
    # cuBLAS may otherwise take its scratch memory, and with it its algorithm, by chance.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def all_reduce(values: Iterable[float], op: str = "sum") -> list[float]:
    """Reduce a few numbers over all ranks (``sum``, ``mean``, ``max`` or ``min``), in float64.

    On CPU tensors: the group that ``zero.start`` makes has a CPU backend also beside NCCL, so no
    device waits for this.
    """
    message = torch.tensor(list(values), dtype=torch.float64)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return message.tolist()
    kinds = {"max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
    dist.all_reduce(message, op=kinds.get(op, dist.ReduceOp.SUM))
    return (message / dist.get_world_size() if op == "mean" else message).tolist()


def barrier() -> None:
    """Wait for all ranks."""
    all_reduce([0.0])


def same_everywhere(digest: str) -> bool:
    """Whether all ranks hold the same hex digest (its first 64 bits are compared)."""
    halves = [float(int(digest[start : start + 8], 16)) for start in (0, 8)]
    return all_reduce(halves, "min") == all_reduce(halves, "max")


class StopSignal:
    """Turns SIGTERM and SIGINT into a flag that the training loop reads once a step.

    Launchers and schedulers may send SIGTERM several times. Only a second Ctrl-C gets the default
    treatment, so that an impatient person can still stop at once.
    """

    def __init__(self) -> None:
        self.raised = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.raised = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
