"""Training steps that are skipped: their loss is not finite or a spike, or a gradient is broken.

All ranks agree on a step from one small message, and the decision stays on the device: the fused
optimizer reads it there (its ``found_inf``), so nobody waits for the device. What was skipped is
read at the next interval. A skipped step counts as a step: data, schedule and seeds go on as if it
had been made, and weights and optimizer state are as before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

MEMORY = 0.02
"""Weight of a new loss in the running mean that a spike is measured against."""


@dataclass(frozen=True)
class GuardConfig:
    """Rules by which steps are skipped.

    Attributes:
        spike: largest loss that is applied, as a multiple of the running mean of the steps before;
            0 skips only losses that are not finite.
        warmup: number of steps before spikes are looked for.
        limit: number of skipped steps after which the run stops.
    """

    spike: float = 0.0
    warmup: int = 100
    limit: int = 20

    def __post_init__(self) -> None:
        if self.spike and self.spike <= 1:
            raise ValueError(f"guard.spike = {self.spike}: give more than 1, or 0 for no limit")
        if self.limit < 1:
            raise ValueError(f"guard.limit = {self.limit}: give at least 1")


@dataclass(frozen=True)
class Skipped:
    """A step that was not applied.

    Attributes:
        step: number of the step.
        reason: why it was skipped.
        samples: uids of the samples of the ranks whose own loss was the reason, or of all ranks
            where no single rank's loss shows it.
    """

    step: int
    reason: str
    samples: list[str]


class Guard:
    """Watches the losses and gradients of one engine, and clips the gradients.

    Args:
        engine: engine of ``zero.engine`` around a fused optimizer of torch.
        clip: largest global gradient norm; 0 leaves gradients alone.
        state: result of ``state()`` in the checkpoint of a resumed run; None in a new run.
    """

    def __init__(
        self, engine: Any, config: GuardConfig, clip: float, state: Mapping[str, float] | None
    ) -> None:
        self.config, self._engine, self._clip = config, engine, clip
        state = state or {}
        device = engine.device
        self._mean = torch.tensor(state.get("mean", 0.0), device=device)
        self._seen = torch.tensor(state.get("seen", 0.0), device=device)
        self.skipped = int(state.get("skipped", 0))
        self._skip = torch.zeros((), device=device)
        self._why = torch.zeros(3, device=device)  # not finite here, spike, broken gradient
        self.norm = torch.zeros((), device=device)
        self._unread: list[tuple[int, Tensor, list[str]]] = []
        engine.basic_optimizer.register_step_pre_hook(self._before_update)

    def judge(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Agree with all ranks on whether the step may be applied. Collective.

        Args:
            losses: fp32 scalars of this rank's step by name, ``loss`` among them.

        Returns:
            Their means over ranks.
        """
        own = torch.stack([value.float() for value in losses.values()])
        broken = (~own.isfinite()).any()
        message = torch.cat((own.nan_to_num(0.0, 0.0, 0.0), broken.float()[None]))
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(message)
            message[:-1] /= dist.get_world_size()
        means = dict(zip(losses, message[:-1], strict=True))
        any_broken = message[-1] > 0
        spike = self._spike(means["loss"]) & ~any_broken
        self._skip = (any_broken | spike).float()
        self._why = torch.stack((broken.float(), spike.float(), torch.zeros_like(self._skip)))
        self._remember(means["loss"])
        return {k: torch.where(any_broken, torch.nan, value) for k, value in means.items()}

    def note(self, step: int, samples: list[str]) -> None:
        """Keep, after the engine's step, what ``collect`` needs should it have been skipped."""
        if getattr(self._engine.optimizer, "overflow", False):  # DeepSpeed skipped by itself
            self._why[2] = torch.maximum(self._why[2], 1 - self._skip)
            self._skip = torch.ones_like(self._skip)
            self.norm = torch.full_like(self.norm, torch.nan)
        self._unread.append((step, torch.cat((self._skip[None], self._why)), samples))

    def collect(self) -> list[Skipped]:
        """Steps skipped since the last call, on every rank alike. Collective; waits for the
        device.

        Raises:
            FloatingPointError: they are more than the limit allows.
        """
        if not self._unread:
            return []
        flags = torch.stack([flag for _, flag, _ in self._unread]).tolist()
        unread, self._unread = self._unread, []
        skipped = [
            self._tell(step, why, samples)
            for (step, _, samples), (skip, *why) in zip(unread, flags, strict=True)
            if skip
        ]
        self.skipped += len(skipped)
        if self.skipped > self.config.limit:
            last = skipped[-1]
            raise FloatingPointError(
                f"{self.skipped} steps were skipped by step {last.step}, over guard.limit = "
                f"{self.config.limit}; the last: {last.reason}. Resume from the last checkpoint "
                "with a lower --optim.lr or --zero.clip 1, or look at the samples in skipped.jsonl"
            )
        return skipped

    def state(self) -> dict[str, float]:
        """The state that a checkpoint must hold for a resumed run to judge as this one."""
        return {
            "mean": self._mean.item(),
            "seen": self._seen.item(),
            "skipped": self.skipped,
        }

    def _spike(self, loss: Tensor) -> Tensor:
        if not self.config.spike:
            return torch.zeros_like(loss, dtype=torch.bool)
        return (self._seen >= self.config.warmup) & (loss > self.config.spike * self._mean)

    def _remember(self, loss: Tensor) -> None:
        """Mean of the first losses, then with a fading memory; skipped ones do not count."""
        weight = torch.clamp(1 / (self._seen + 1), min=MEMORY) * (1 - self._skip)
        self._mean = self._mean + (loss - self._mean) * weight
        self._seen = self._seen + 1 - self._skip

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Before each of the optimizer's updates (ZeRO makes one a group): skip or clip it."""
        gradients = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        known = getattr(self._engine.optimizer, "_global_grad_norm", None)
        if known is None:  # no ZeRO: every rank holds all gradients
            known = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self.norm = torch.as_tensor(known, dtype=torch.float32, device=self._skip.device)
        broken = (~self.norm.isfinite() | (self.norm < 0)).float()
        self._why[2] = torch.maximum(self._why[2], broken * (1 - self._skip))
        self._skip = torch.maximum(self._skip, broken)
        optimizer.found_inf = self._skip  # type: ignore[attr-defined]
        if self._clip:
            torch._foreach_mul_(gradients, torch.clamp(self._clip / (self.norm + 1e-6), max=1.0))

    def _tell(self, step: int, why: list[float], samples: list[str]) -> Skipped:
        here, spike, gradient = why
        reason = "a loss that is not finite"
        if spike:
            reason = f"a loss over {self.config.spike:g} x the running mean"
        if gradient:
            reason = "a gradient that is not finite"
        mine = samples if here or spike or gradient else []
        named = [mine]
        if dist.is_initialized() and dist.get_world_size() > 1:
            named = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(named, mine)
        return Skipped(step, reason, [uid for uids in named for uid in uids])
