"""The training loop of the zoo's vision models.

Every step draws from a stream of random numbers of its own. Weights are bf16 with fp32 copies where
this CPU multiplies bf16 in hardware, else fp32.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from cluster.malloc import keep_freed_memory
from modeling.precision import DTYPES, chosen, multiplies_bf16
from pipeline.tinyworld.scene import stream

Report = Callable[[int, int, dict[str, float]], None]  # step, steps, running means
Losses = Callable[[int, random.Random], tuple[Tensor, dict[str, float]]]  # loss, values to show


def zoo_dtype() -> torch.dtype:
    """The number format that the zoo's models train in on this machine's CPU."""
    return DTYPES[chosen("auto", multiplies_bf16("cpu"))]


class Schedule(Protocol):
    """Fields of ``ClipTraining`` and ``CaptionerTraining`` that the loop reads."""

    @property
    def seed(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...


class MasterAdamW:
    """AdamW on fp32 copies of weights in ``dtype``, without decay of biases, norms and vectors."""

    def __init__(
        self, modules: Sequence[nn.Module], lr: float, weight_decay: float, dtype: torch.dtype
    ) -> None:
        self.weights: list[Tensor] = [p for module in modules for p in module.parameters()]
        self.copies = [p.detach().float().clone() for p in self.weights]
        for module in modules:
            module.to(dtype)
        decayed = [c for c in self.copies if c.ndim > 1]
        plain = [c for c in self.copies if c.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.lr = lr
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), foreach=True)

    def step(self, factor: float) -> None:
        """Make one update at ``factor`` times the base learning rate, and clear the gradients."""
        for weight, copy in zip(self.weights, self.copies, strict=True):
            copy.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        nn.utils.clip_grad_norm_(self.copies, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.copies)


def _factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to nearly zero."""
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)


def train(
    name: str,
    modules: Sequence[nn.Module],
    losses: Losses,
    plan: Schedule,
    report: Report,
) -> None:
    """Train ``modules`` in `zoo_dtype`.

    Args:
        name: name of the model, for messages and for the random numbers.
        modules: modules whose parameters are trained.
        losses: function of a step and its random numbers; returns the loss and values to show.
        plan: steps, learning rate and seed.
        report: function that is called after every step.

    Raises:
        ValueError: the loss is not finite.
    """
    keep_freed_memory()
    optimizer = MasterAdamW(modules, plan.lr, plan.weight_decay, zoo_dtype())
    running: dict[str, float] = {}
    for step in range(plan.steps):
        loss, values = losses(step, stream(plan.seed, name, step))
        if not math.isfinite(loss.item()):
            raise ValueError(f"{name}: loss {loss.item()} at step {step}; lower lr={plan.lr}")
        loss.backward()
        optimizer.step(_factor(step, plan.steps, plan.warmup))
        for key, value in values.items():
            running[key] = 0.95 * running.get(key, value) + 0.05 * value
        report(step + 1, plan.steps, running)


def printer(name: str, every: int = 50) -> Report:
    """Progress with an estimate of the time left, one line every ``every`` steps."""
    start = time.monotonic()

    def report(step: int, steps: int, running: dict[str, float]) -> None:
        if step % every and step != steps:
            return
        spent = time.monotonic() - start
        means = "  ".join(f"{key} {value:.3f}" for key, value in running.items())
        eta = spent / step * (steps - step)
        print(f"{name} {step}/{steps}  {means}  {spent:.0f} s, ETA {eta:.0f} s", flush=True)

    return report
