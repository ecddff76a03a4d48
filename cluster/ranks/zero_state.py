"""fp32 masters and Adam moments of a DeepSpeed engine as whole tensors, one a parameter.

Whatever the ZeRO stage and world size, these read and write the same tensors, exactly: a parameter
is gathered by summing disjoint fragments with zeros. That is what makes our checkpoints
independent of the number of ranks. Reading is collective: all ranks call it in the same order.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")


def prime(engine: Any) -> None:
    """Give every optimizer partition its zero moments now instead of at the first step."""
    optimizer = engine.basic_optimizer
    for partition in _partitions(engine):
        state = optimizer.state[partition]
        on_device = any(optimizer.defaults.get(name) for name in ("fused", "capturable"))
        state.setdefault("step", torch.zeros((), device=partition.device if on_device else "cpu"))
        for moment in MOMENTS:
            state.setdefault(moment, torch.zeros_like(partition))
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:  # stages 1 and 2 map each parameter to its fragment of the partition
        link()


def read(engine: Any, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, whole fp32 tensor) of ``master``, ``exp_avg`` or ``exp_avg_sq``.

    Raises:
        RuntimeError: a tensor that is empty, or of another shape than its parameter: the part of a
            rank must never be taken for the whole.
    """
    for name, parameter in engine.module.named_parameters():
        value = _whole(engine, parameter, kind)
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        found = None if value is None else tuple(value.shape)
        if value is None or found != shape or not value.numel():
            raise RuntimeError(f"{kind} of {name} was gathered with shape {found}, not {shape}")
        yield name, value


def _whole(engine: Any, parameter: nn.Parameter, kind: str) -> Tensor | None:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if not _sharded(parameter):
        state = engine.basic_optimizer.state[parameter]
        return parameter.detach() if kind == MASTER else state[kind]
    if kind == MASTER:
        return safe_get_full_fp32_param(parameter)
    return safe_get_full_optimizer_state(parameter, kind)


def write(engine: Any, kind: str, tensors: Mapping[str, Tensor]) -> None:
    """Set masters (and with them the weights that the forward pass uses) or one moment.

    A parameter without a tensor stays as it is; ``checkpoint`` checks names and shapes before.
    """
    for name, parameter in engine.module.named_parameters():
        if name not in tensors:
            continue
        value = tensors[name].to(device=engine.device, dtype=torch.float32)
        if hasattr(parameter, "ds_id"):
            _write_stage3(parameter, kind, value)
        elif _sharded(parameter):
            _write_fragment(parameter, kind, value)
        elif kind != MASTER:
            engine.basic_optimizer.state[parameter][kind].copy_(value)
        if kind == MASTER and not hasattr(parameter, "ds_id"):
            parameter.data.copy_(value)


def read_count(engine: Any) -> int:
    """The number of updates that Adam has made."""
    states = engine.basic_optimizer.state
    return max((int(states[p]["step"]) for p in _partitions(engine)), default=0)


def write_count(engine: Any, count: int) -> None:
    """Set the number of updates that Adam has made; its bias correction depends on it."""
    for partition in _partitions(engine):
        engine.basic_optimizer.state[partition]["step"].fill_(count)


def _partitions(engine: Any) -> list[nn.Parameter]:
    """The parameters as torch's optimizer sees them: flat fp32 partitions, except at stage 0."""
    flat = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    if flat is not None:  # stage 3 puts them into the groups only during a step
        return list(flat)
    return [p for group in engine.basic_optimizer.param_groups for p in group["params"]]


def _sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _write_fragment(parameter: nn.Parameter, kind: str, value: Tensor) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if kind == MASTER:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, kind)


def _write_stage3(parameter: Any, kind: str, value: Tensor) -> None:
    """DeepSpeed's own setter runs over the end of a size that the world does not divide."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    size = parameter.ds_tensor.numel()
    padded = value.new_zeros(size * dist.get_world_size())
    padded[: value.numel()] = value.flatten()
    mine = padded[size * dist.get_rank() :][:size]
    if kind != MASTER:
        safe_set_local_optimizer_state(parameter, mine, kind)
        return
    safe_set_local_fp32_param(parameter, mine)
    parameter.ds_tensor.data.copy_(mine)
    if parameter.data.numel() == value.numel():  # small weights stay whole on every rank
        parameter.data.copy_(value.view_as(parameter.data))
