"""A test whether a language model's logits are one matrix times its last hidden states.

If so, only the positions with a target need be multiplied by the matrix: with 32 visual prompts in
front of a caption, a quarter of them. Other models compute all logits themselves (Gemma-2 bounds
them, Cohere scales them, BART adds a bias to them).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def plain_body(model: Any) -> Any | None:
    """The part of a language model whose last hidden states are the output matrix's input.

    The model's first block runs once on two positions, and the tensors that enter and leave the
    output matrix are followed: they must be the body's last hidden states and the logits. No value
    is read, so that this works on the meta device too.

    Args:
        model: A causal or encoder-decoder language model from transformers.

    Returns:
        A module whose output has `last_hidden_state`; None where the model does anything else
        before or after the output matrix. T5 may scale the matrix's input
        (`scale_decoder_outputs`); this is allowed, and the caller must do it.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return None
    seen: dict[str, tuple[Any, ...]] = {}
    kept: list[Tensor] = []  # alive until all are compared, so that no memory is used twice
    outputs: dict[str, Any] = {}

    def on_head(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        kept.extend((given[0], made))
        seen["input"], seen["output"] = _identity(given[0]), _identity(made)

    bodies = {"decoder": model.get_decoder(), "base": model.base_model}
    hooks = [head.register_forward_hook(on_head)]
    for name, body in bodies.items():

        def on_body(_: nn.Module, __: Any, made: Any, name: str = name) -> None:
            outputs[name] = getattr(made, "last_hidden_state", None)

        hooks.append(body.register_forward_hook(on_body))
    try:
        with first_block(model):
            logits = model(**_two_positions(model)).logits
    finally:
        for hook in hooks:
            hook.remove()
    if not kept or _identity(logits) != seen["output"]:
        return None
    for name, hidden in outputs.items():
        if hidden is not None and _identity(hidden) == seen["input"]:
            return bodies[name]
    scaled = getattr(model.config, "scale_decoder_outputs", False)
    return bodies["decoder"] if scaled and "decoder" in outputs else None


def _two_positions(model: Any) -> dict[str, Any]:
    table = model.get_input_embeddings().weight
    inputs = torch.zeros(1, 2, table.shape[1], dtype=table.dtype, device=table.device)
    if not model.config.is_encoder_decoder:
        return {"inputs_embeds": inputs, "use_cache": False}
    first = torch.zeros(1, 2, dtype=torch.long, device=table.device)
    return {"inputs_embeds": inputs, "decoder_input_ids": first, "use_cache": False}


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Memory, shape and version of a tensor: equal where two tensors are the same numbers."""
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.shape, tensor.stride(), tensor.storage_offset(), tensor._version


@contextmanager
def first_block(model: nn.Module) -> Iterator[None]:
    """Inside, a model runs only the first block of each of its lists of equal blocks."""
    whole = [
        (part, name, child)
        for part, name, child in _outer_lists(model)
        if len({type(block) for block in child}) == 1
    ]
    for part, name, child in whole:
        setattr(part, name, child[:1])
    try:
        yield
    finally:
        for part, name, child in whole:
            setattr(part, name, child)


def _outer_lists(part: nn.Module) -> Iterator[tuple[nn.Module, str, nn.ModuleList]]:
    for name, child in part.named_children():
        if isinstance(child, nn.ModuleList):
            yield part, name, child
        else:
            yield from _outer_lists(child)
