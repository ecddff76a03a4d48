"""A short digest of a model's weights, by which a trained part knows the models it belongs to."""

import hashlib

import torch
from torch import nn

_SAMPLE = 256


def weights_digest(module: nn.Module) -> str:
    """32 hex digits of a module's weights: names, shapes, and the first 256 numbers of each.

    Numbers count as bf16, so that a model and its copy in a shorter format are the same. Two
    models that were trained differently differ in almost every tensor.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        first = parameter.detach().flatten()[:_SAMPLE].to("cpu", torch.bfloat16)
        digest.update(first.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]
