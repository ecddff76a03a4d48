"""What the guard does on a real engine of each ZeRO stage, as a JSON line. Run by test_guard."""

import json
import traceback
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.ranks import zero
from cluster.ranks.guard import Guard, GuardConfig
from cluster.ranks.zero_state import MASTER, MOMENTS, read, read_count


class Scaled(nn.Module):
    """A loss whose size, and whose gradient, the data decide."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 6)
        self.outer = nn.Linear(6, 1, bias=False)

    def forward(self, x_B4: Tensor, factor: float, broken_gradient: bool) -> Tensor:
        out = self.outer(torch.tanh(self.inner(x_B4.to(self.inner.weight.dtype)))).float()
        if broken_gradient:  # 0 in value, not a number in its derivative
            out = out + 0 * (out - out.detach()).sqrt()
        return factor * (1 + out.pow(2).mean())


def make(stage: int, precision: str, config: GuardConfig, clip: float, accumulation: int = 1):
    module = Scaled()
    groups = [{"params": [p], "weight_decay": 0.1} for p in module.parameters()]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, fused=True)
    engine = zero.engine(
        module, optimizer, zero.ZeroConfig(stage=stage, precision=precision), 2, accumulation
    )
    return engine, Guard(engine, config, clip, None)


def snapshot(engine) -> dict[str, Tensor]:
    kinds = (MASTER, *MOMENTS)
    return {f"{k}/{name}": t.clone() for k in kinds for name, t in read(engine, k)}


def step(engine, guard, number, here, *, factor: float = 1.0, broken: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(number * 10 + here.rank)
    loss = engine(torch.randn(2, 4, generator=generator), factor, broken)
    engine.backward(loss)
    means = guard.judge({"loss": loss.detach()})
    engine.step()
    guard.note(number, [f"sample-{number}-{here.rank}"])
    return means["loss"]


def skips(stage: int, precision: str, here) -> dict[str, Any]:
    """A loss, a gradient that are not finite, a spike; each on one rank or both."""
    engine, guard = make(stage, precision, GuardConfig(spike=3.0, warmup=2, limit=5), 0.0)
    last = here.rank == here.world - 1
    for number in range(1, 4):
        step(engine, guard, number, here)
    before, count = snapshot(engine), read_count(engine)
    step(engine, guard, 4, here, factor=float("nan") if last else 1.0)
    step(engine, guard, 5, here, broken=last)
    step(engine, guard, 6, here, factor=50.0)
    same = all(torch.equal(before[k], v) for k, v in snapshot(engine).items())
    told = [vars(skipped) for skipped in guard.collect()]
    after_count = read_count(engine)
    step(engine, guard, 7, here)
    moved = any(not torch.equal(before[k], v) for k, v in snapshot(engine).items())
    return {
        "same": same,
        "count": [count, after_count, read_count(engine)],
        "told": told,
        "moved": moved,
        "rest": [vars(skipped) for skipped in guard.collect()],
        "state": guard.state(),
    }


def limit(here) -> str:
    """More skipped steps than allowed."""
    engine, guard = make(0, "fp32", GuardConfig(limit=2), 0.0)
    for number in range(1, 4):
        step(engine, guard, number, here, factor=float("inf"))
    try:
        guard.collect()
    except FloatingPointError as stopped:
        return str(stopped)
    return ""


def clipped(stage: int, here) -> list[float]:
    """The norm before clipping, and the largest first moment after one step, with and without."""
    found = []
    for clip in (0.0, 1e-3):
        engine, guard = make(stage, "fp32", GuardConfig(), clip)
        step(engine, guard, 1, here)
        moments = torch.cat([t.flatten() for _, t in read(engine, MOMENTS[0])])
        found += [guard.norm.item(), moments.norm().item()]
    return found


class Syncs(TorchDispatchMode):
    """Where a value is read back: what would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}:
            self.places.append("".join(traceback.format_stack(limit=6)[:-1]))
        return func(*args, **(kwargs or {}))


def syncs(stage: int, here) -> list[str]:
    """Reads of a value in a step that is clipped, between two intervals."""
    engine, guard = make(stage, "bf16", GuardConfig(spike=3.0), 1.0)
    for number in (1, 2, 3):  # in its first steps ZeRO-3 compares the order of weights over ranks
        step(engine, guard, number, here)
    with Syncs() as seen:
        step(engine, guard, 4, here)
        step(engine, guard, 5, here)
    return seen.places


def accumulated(stage: int, here) -> float:
    """How far four micro-batches end from one batch of them; a step is one update."""
    ends = []
    for pieces in (1, 4):
        engine, guard = make(stage, "fp32", GuardConfig(), 0.0, pieces)
        for number in range(3):
            generator = torch.Generator().manual_seed(number * 10 + here.rank)
            x = torch.randn(8, 4, generator=generator)
            for at, part in enumerate(x.chunk(pieces)):
                engine.set_gradient_accumulation_boundary(at == pieces - 1)
                loss = engine(part, 1.0, False)
                engine.backward(loss)
            guard.judge({"loss": loss.detach()})
            engine.step()
        assert read_count(engine) == 3
        ends.append(snapshot(engine))
    return max((ends[0][k] - ends[1][k]).abs().max().item() for k in ends[0])


def main() -> None:
    here = zero.start(300)
    said: dict[str, Any] = {"limit": limit(here)}
    cases = [(0, "bf16"), (0, "fp32"), (1, "bf16"), (2, "bf16"), (2, "fp32"), (3, "bf16")]
    for stage, precision in cases:
        said[f"{stage} {precision}"] = skips(stage, precision, here)
    for stage in range(4):
        said[f"syncs {stage}"] = syncs(stage, here)
    for stage in range(4):
        said[f"clip {stage}"] = clipped(stage, here)
        said[f"accumulated {stage}"] = accumulated(stage, here)
    if here.rank == 0:
        print(json.dumps(said))
    zero.stop()
    zero.leave(0)


if __name__ == "__main__":
    main()
