"""Frozen models whose weights are divided among the ranks, by torch's FSDP (``fully_shard``).

It is for models of which a rank cannot hold a copy, such as FlanT5-XXL on 40 GB. ZeRO-3 is no
choice for them: the engine holds nothing that does not train. (Elsewhere in this code a shard is a
tar of samples.)
"""

import warnings

import torch
import torch.distributed as dist
from torch import nn


def shard_frozen(model: nn.Module, device: torch.device) -> None:
    """Divide every block's weights among the ranks, and move the model to the device.

    A block's weights are gathered when it runs, forward and backward, and dropped after it; what
    is in no block (embeddings, head) stays whole. Collective, also every forward and backward pass
    after it. On a single rank the model is moved and nothing else.

    Raises:
        ValueError: a parameter that trains, or no stack of blocks in the model.
    """
    if any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("only a frozen model can be sharded: requires_grad_(False) first")
    if dist.is_initialized() and dist.get_world_size() > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # It warns of in-place changes of a block's output; no model of transformers makes them.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for block in blocks(model):
            fully_shard(block, mesh=mesh)
    _move_rest(model, device)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks: members of the outermost lists of equal modules.

    Raises:
        ValueError: there are none.
    """
    found: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len({type(m) for m in module}) == 1:
            inner = {id(part) for block in found for part in block.modules()}
            found += [block for block in module if id(block) not in inner]
    if not found:
        raise ValueError(f"{type(model).__name__} has no list of blocks to shard")
    return found


def _move_rest(model: nn.Module, device: torch.device) -> None:
    """What is not sharded; shards are where they belong."""
    from torch.distributed.tensor import DTensor

    for parameter in model.parameters():
        if not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
