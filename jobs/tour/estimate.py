"""An estimate of the tour's duration on this machine, made before it starts.

A trial times a step of the tour's own Q-Former, which takes a second or two. The duration of every
stage is a multiple of it, by factors that were measured once.
"""

import time
from dataclasses import dataclass

import torch

from cluster.malloc import keep_freed_memory
from jobs import recipes
from modeling.blip2 import Stage1
from modeling.precision import DTYPES, chosen, multiplies_bf16, threads_set

TRIAL_BATCH, TRIAL_WORDS = 16, 20
START = 170.0
"""Seconds that all stages together take to import, load and end."""


@dataclass(frozen=True)
class Work:
    """Amounts of work in the tour.

    Attributes:
        images: pairs that CapFilt captions.
        stage1, t5, opt: samples of each training stage.
        tests: images that are evaluated.
        ranks: processes that share a training stage.
    """

    images: int
    stage1: int
    t5: int
    opt: int
    tests: int
    ranks: int


def expected_seconds(work: Work, trained: float, fp32: float) -> float:
    """Seconds of the whole tour.

    Args:
        work: amounts of work.
        trained: samples a second of the trial in the number format of training.
        fp32: samples a second of the trial in fp32. CapFilt computes in fp32, and the small layers
            of stage 2 and the evaluation are hardly faster in bf16.
    """
    stage1 = 1.2 * work.stage1 / (trained * work.ranks)
    stage2 = (0.42 * work.t5 + 0.4 * work.opt) / (fp32 * work.ranks)
    rest = (1.4 * work.images + 12 * work.tests) / (2 * fp32)
    return START + stage1 + stage2 + rest


def measure() -> tuple[str, float, float]:
    """The number format that training will take here, and the trial's rates in it and in fp32."""
    keep_freed_memory()
    dtype = chosen("auto", multiplies_bf16("cpu"))
    with threads_set(1):
        fp32 = _samples_per_second(torch.float32)
        return dtype, fp32 if dtype == "fp32" else _samples_per_second(DTYPES[dtype]), fp32


def _samples_per_second(dtype: torch.dtype, steps: int = 3) -> float:
    """Rate of a forward and backward pass of stage 1 on made-up tokens, on one core."""
    recipe = recipes.recipe("stage1", "tinyworld")
    config = recipe.model
    torch.manual_seed(0)
    stage = Stage1(config).to(dtype)
    tokens = torch.randn(TRIAL_BATCH, 65, config.qformer.encoder_width, dtype=dtype)
    ids = torch.randint(5, config.qformer.vocab - 2, (TRIAL_BATCH, TRIAL_WORDS))
    shortest = float("inf")
    for _ in range(steps):
        begun = time.perf_counter()
        losses = stage(tokens, ids, torch.ones_like(ids))
        losses["loss"].backward()
        shortest = min(shortest, time.perf_counter() - begun)
    return TRIAL_BATCH / shortest
