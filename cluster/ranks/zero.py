"""The DeepSpeed engine: made from a typed configuration, started and left by all ranks.

The frozen encoder and language model are kept outside the engine's module: inside it, DeepSpeed
would cast, broadcast, shard and save them too.
"""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.ranks import network, zero_state
from cluster.ranks.dist import Process, barrier, this_process


@dataclass(frozen=True)
class ZeroConfig:
    """Division of parameters, gradients and optimizer state among the ranks, and their formats.

    Attributes:
        stage: ZeRO stage: 0 replicates everything, 1 divides the optimizer state among the ranks,
            2 the gradients too, 3 the weights too.
        precision: number format of weights and activations. ``bf16`` keeps fp32 masters,
            accumulates and exchanges gradients in fp32; at stage 0 it is autocast over fp32
            weights. ``auto`` is bf16 where all ranks' devices multiply it in hardware, else fp32.
        clip: largest global gradient norm; 0 leaves gradients alone, as the paper does.
        bucket: number of elements in one gradient exchange.
        timeout_s: seconds that a step or a collective may take before the run is stopped.
    """

    stage: Literal[0, 1, 2, 3] = 2
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    clip: float = 0.0
    bucket: int = 200_000_000
    timeout_s: int = 1800


def start(timeout_s: int = 1800) -> Process:
    """Join the process group (gloo on CPU, NCCL with a CPU backend beside it on GPUs).

    Works under the ``deepspeed`` launcher and, for a single rank, without any launcher.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for key, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(key, value)
    here = this_process()
    backend = "gloo" if here.device.type == "cpu" else "cpu:gloo,cuda:nccl"
    if here.device.type == "cuda":
        torch.cuda.set_device(here.device)
    if not dist.is_initialized():
        limit = timedelta(seconds=timeout_s)
        if here.world == 1:  # no address or port is needed to talk to oneself
            dist.init_process_group(
                backend, store=dist.HashStore(), rank=0, world_size=1, timeout=limit
            )
        else:
            store = network.meet(limit)
            dist.init_process_group(
                backend, store=store, rank=here.rank, world_size=here.world, timeout=limit
            )
        network.limit_new_groups(limit)
    _deepspeed().init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    return here


def stop() -> None:
    """Leave the process group together: a rank that is still in it must not lose its peers."""
    barrier()
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this process at once, after everything is written and the group is left.

    An ordinary exit tears torch's threads down in an order that now and then ends rank 0 with
    ``std::terminate`` (one exit in five or so, with gloo): a finished run must not look failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def engine(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: ZeroConfig,
    micro_batch: int,
    accumulation: int = 1,
) -> Any:
    """Wrap ``module`` (trainable parts only) in a DeepSpeed engine.

    The optimizer's moments are made at once, filled with zeros, so that they can be read and
    written before the first step. The fp32 masters start from the module's own weights, not from
    the bf16 copies that the engine makes of fp32 or fp16 ones.

    Raises:
        ValueError: a 0-dimensional or a frozen parameter, which DeepSpeed would choke on or save.
    """
    _check(module)
    rounded = {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in module.named_parameters()
        if parameter.dtype != torch.bfloat16
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped, *_ = _deepspeed().initialize(
            model=module,
            optimizer=optimizer,
            config=to_deepspeed(config, micro_batch, accumulation, this_process().world),
            dist_init_required=False,
        )
    if hasattr(wrapped.optimizer, "get_grad_norm_direct"):
        wrapped.optimizer.get_grad_norm_direct = _norm_over_ranks
    zero_state.prime(wrapped)
    zero_state.write(wrapped, zero_state.MASTER, rounded)
    return wrapped


def to_deepspeed(
    config: ZeroConfig, micro_batch: int, accumulation: int, world: int
) -> dict[str, Any]:
    """The DeepSpeed configuration for ``config`` and this batch arithmetic."""
    assert config.precision != "auto", "the precision is settled before the engine is made"
    settings: dict[str, Any] = {
        "train_batch_size": micro_batch * accumulation * world,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0,  # by the guard
        "zero_optimization": {
            "stage": config.stage,
            "reduce_bucket_size": config.bucket,
            "allgather_bucket_size": config.bucket,
        },
        "zero_allow_untested_optimizer": True,  # torch's AdamW: no compiler at start
        "steps_per_print": 1_000_000_000,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device twice a step
    }
    if config.precision == "bf16" and config.stage == 0:
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    elif config.precision == "bf16":
        # The guard looks at the gradients, on the device.
        settings["bf16"] = {"enabled": True, "check_grad_overflow": False}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
        settings["communication_data_type"] = "fp32"
    return settings


def _check(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            raise ValueError(f"{name} is frozen: keep frozen models outside the engine's module")
        if parameter.dim() == 0:
            raise ValueError(f"{name} has no dimension: DeepSpeed needs shape (1,)")


def _deepspeed() -> Any:
    """Import DeepSpeed quietly, and without compiling an operator that training does not use."""
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # DeepSpeed calls collectives under names that this torch has deprecated.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    # On a CPU the backend would probe compilers and build a shared-memory all-reduce (a minute at
    # first start) that only inference calls. No operator marked compatible: nothing is built.
    if not torch.cuda.is_available():
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})
    _trust_the_guard()
    return deepspeed


def _norm_over_ranks(gradients: Sequence[Tensor], *_: Any) -> Tensor:
    """Norm of a parameter group whose gradients are cut over ranks, in place of DeepSpeed's, which
    adds the ranks' parts in fp32: its last bit, and with clipping every weight's, would depend on
    the number of ranks.
    """
    norms = [
        torch.zeros((), dtype=torch.float64, device=this_process().device)
    ]  # a rank may hold none
    if gradients:  # in few kernels: one a parameter was a tenth of all that a step starts
        norms += torch._foreach_norm(list(gradients), 2, dtype=torch.float64)
    total = torch.stack(norms).square().sum()
    dist.all_reduce(total)
    return total.sqrt().float()


def _trust_the_guard() -> None:
    """ZeRO 1 (in bf16) and 3 would read every step's gradient norm back, to skip a broken step: the
    guard does that on the device. At ZeRO 2 a setting says so, here there is none.
    """
    from deepspeed.runtime import bf16_optimizer
    from deepspeed.runtime.zero import stage3

    for module in (bf16_optimizer, stage3):
        assert hasattr(module, "is_invalid_grad_norm"), "this DeepSpeed reads norms elsewhere"
        module.is_invalid_grad_norm = lambda norm: False
