"""Train a small module on the real engine; prints one exact loss a step. Run by test_checkpoint."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from cluster import checkpoint
from cluster.ranks import zero
from cluster.ranks.dist import all_reduce, seed_step

BATCH = 8


class Small(nn.Module):
    """Sizes that no world size divides, a (1,) parameter, dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.inner = nn.Linear(7, 33)
        self.outer = nn.Linear(33, 5)
        self.scale = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x):
        hidden = torch.relu(self.inner(x.to(self.inner.weight.dtype)))
        hidden = nn.functional.dropout(hidden, self.dropout, self.training)
        return (self.outer(hidden) * self.scale).float().pow(2).mean()


def build(stage: int, precision: str, dropout: float, world: int):
    torch.manual_seed(5)
    module = Small(dropout)
    weights = [p for p in module.parameters() if p.dim() > 1]
    others = [p for p in module.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=1e-2,
        fused=True,
    )
    config = zero.ZeroConfig(stage=stage, precision=precision)
    return zero.engine(module, optimizer, config, BATCH // world)


def run(engine, here, first: int, last: int, *, label: str, save: tuple[int, Path] | None) -> None:
    for step in range(first, last):
        x = torch.randn(BATCH, 7, generator=torch.Generator().manual_seed(step))
        seed_step(0, step, micro=here.rank)
        loss = engine(x[here.rank :: here.world])
        engine.backward(loss)
        engine.step()
        mean = all_reduce([loss.item()], "mean")[0]
        if here.rank == 0:
            print("loss", json.dumps([label, step, mean.hex()]), flush=True)
        if save and step + 1 == save[0]:
            state = {"step": step + 1}
            writer = checkpoint.Writer(checkpoint.open_store(str(save[1])))
            writer.save(engine, here, recipe={"kind": "test"}, state=state, last=True)


def main(plan: dict) -> None:
    """Each phase of the plan builds everything anew; one with ``resume`` starts where it was."""
    here = zero.start(600)
    out = Path(plan["out"])
    for phase in plan["phases"]:
        engine = build(plan["stage"], plan["precision"], plan["dropout"], here.world)
        first = 0
        if phase["resume"]:
            found = checkpoint.find(out)
            found.verify()
            first = found.step
            checkpoint.restore(engine, found)
        save = (phase["save_at"], out) if phase["save_at"] else None
        run(engine, here, first, phase["last"], label=phase["label"], save=save)
    zero.stop()
    zero.leave(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
