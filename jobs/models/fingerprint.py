"""A fingerprint of a language model's weights: soft prompts fit the one model that they were
trained with, and other models of its shape (another version of Vicuna) answer them with garbage.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from jobs.models.tensors import Lazy

# Vectors that are no trained part of a model, or grow with words that are added to it.
_LEFT_OUT = (".inv_freq", "lm_head.bias", "final_logits_bias")


def fingerprint(tensors: Mapping[str, Tensor | Lazy]) -> str:
    """SHA-256 of a model's vectors (norms and biases), as hexadecimal digits; "" without any.

    Every training changes them, and they are a few hundred kilobytes of the largest model. They are
    rounded to bf16 and taken in an order of their own, so that a model has one fingerprint in all
    number formats and under all names.

    Args:
        tensors: weights by Hugging Face's names.
    """
    vectors = []
    for name, tensor in tensors.items():
        if len(tensor.shape) != 1 or not tensor.dtype.is_floating_point or name.endswith(_LEFT_OUT):
            continue
        read = tensor.read() if isinstance(tensor, Lazy) else tensor.detach()
        rounded = read.to("cpu", torch.bfloat16).view(torch.int16)
        vectors.append(hashlib.sha256(rounded.numpy().tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(vectors))).hexdigest() if vectors else ""


def check_fingerprint(digest: str, tensors: Mapping[str, Tensor | Lazy], name: str) -> None:
    """Check that a language model is the one that a checkpoint was trained with.

    Args:
        digest: fingerprint in the checkpoint's recipe; empty: any model will do.
        tensors: the model's weights.
        name: name of the model, for the message.

    Raises:
        ValueError: it is another one.
    """
    if not digest:
        return
    found = fingerprint(tensors)
    if found != digest:
        raise ValueError(
            f"language model {name!r} is not the one that the checkpoint was trained with (its "
            f"fingerprint is {found[:12]}, not {digest[:12]}; other versions of Vicuna have the "
            "same sizes and other weights): give that one"
        )
