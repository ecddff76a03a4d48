"""Nucleus sampling with random numbers from a hash: repeatable for each caption.

A caption is a function of seed, uid, index and model. Every draw uses a random number of the
caption's own, so that neighbours, order, workers and retries cannot change it.

Shapes: R distributions, V vocabulary, K candidates.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from modeling.prompts import CAPFILT

_CANDIDATES = (32, 1024)  # nuclei of trained captioners are small; only wider ones sort more


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Settings of the captions' drawing. Lengths count tokens, the prompt's included, as in BLIP.

    Attributes:
        captions: captions for each image.
        prompt: text that every caption continues.
        top_p: probability mass of the nucleus; 0.9 is the released library's default (the authors'
            CapFilt script has 0.95).
        temperature: divisor of the logits; 0 is greedy.
        min_length: least length.
        max_length: largest length.
        repetition_penalty: divisor of the scores of tokens that are in the text; 1: none.
    """

    captions: int = 10
    prompt: str = CAPFILT
    top_p: float = 0.9
    temperature: float = 1.0
    min_length: int = 5
    max_length: int = 30
    repetition_penalty: float = 1.1

    def __post_init__(self) -> None:
        if self.captions < 1:
            raise ValueError(f"captions={self.captions}: at least 1")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be in (0, 1]")
        if self.temperature < 0 or self.repetition_penalty <= 0:
            raise ValueError("temperature must be >= 0 and repetition_penalty > 0")
        if not 0 <= self.min_length <= self.max_length:
            raise ValueError(f"min_length={self.min_length} must be in 0..{self.max_length}")


def uniforms(seed: int, uid: str, caption: int, steps: int) -> Tensor:
    """Float64 numbers in [0, 1) for one caption, one for each step: SHAKE-128 of its key.

    The hash is extendable: the first numbers are the same whatever ``steps`` is, on every machine.
    """
    stream = hashlib.shake_128(f"{seed}\0{uid}\0{caption}".encode()).digest(8 * steps)
    drawn = [int.from_bytes(stream[i : i + 8], "little") >> 11 for i in range(0, 8 * steps, 8)]
    return torch.tensor(drawn, dtype=torch.float64) * 2.0**-53


def nucleus(logits_RV: Tensor, uniform_R: Tensor, top_p: float) -> Tensor:
    """One token from the smallest set of likeliest tokens with mass >= ``top_p``, for each row.

    Tokens are ordered by probability, equal ones by id; the token is drawn at which the cumulated
    probability passes ``uniform`` x the set's mass (inverse CDF).

    Args:
        logits_RV: float32 logits.
        uniform_R: random numbers in [0, 1).
        top_p: least mass of the set.

    Returns:
        int64 ids, shape R.
    """
    probs_RV = logits_RV.softmax(-1)
    vocabulary = probs_RV.shape[-1]
    chosen_R = torch.empty_like(uniform_R, dtype=torch.int64)
    open_R = torch.arange(len(probs_RV), device=probs_RV.device)
    for width in (*(w for w in _CANDIDATES if w < vocabulary), vocabulary):
        rows_RV = probs_RV if len(open_R) == len(probs_RV) else probs_RV[open_R]
        ids_RK = rows_RV.topk(width, dim=-1).indices.sort(dim=-1).values
        probs_RK = rows_RV.gather(1, ids_RK)
        drawn_R, closed_R = _inverse_cdf(probs_RK, ids_RK, uniform_R[open_R], top_p)
        chosen_R[open_R] = drawn_R
        open_R = open_R[~closed_R]
        if not len(open_R):
            break
    return chosen_R


def _inverse_cdf(
    probs_RK: Tensor, ids_RK: Tensor, uniform_R: Tensor, top_p: float
) -> tuple[Tensor, Tensor]:
    """Tokens drawn among ``ids`` (ascending), and whether the nucleus certainly lies inside them.

    It does when it ends at a probability above the least likely candidate's: no other token is
    likelier than that one, so neither the order nor the mass of the nucleus could change.
    """
    sorted_RK, order_RK = probs_RK.sort(dim=-1, descending=True, stable=True)
    mass_RK = sorted_RK.double().cumsum(-1)
    kept_RK = (mass_RK - sorted_RK.double()) < top_p
    kept_RK[:, 0] = True
    last_R = kept_RK.sum(-1) - 1
    total_R = mass_RK.gather(1, last_R[:, None])[:, 0]
    target_R = uniform_R.to(mass_RK.dtype) * total_R
    index_R = torch.minimum((mass_RK <= target_R[:, None]).sum(-1), last_R)
    closed_R = sorted_RK.gather(1, last_R[:, None])[:, 0] > sorted_RK[:, -1]
    drawn_R = order_RK.gather(1, index_R[:, None])
    return ids_RK.gather(1, drawn_R)[:, 0], closed_R
