"""A rank that trains LLaVA by the job's own parts, and looks at what must not have changed."""

import sys
from functools import partial

import torch

from jobs.llava import open_talks, take_stage
from jobs.training import llava
from jobs.training.command import parse
from jobs.training.plan import make_plan
from jobs.training.run import train


def main() -> None:
    """Train, then compare the frozen models with themselves before it, bit for bit."""
    stage, line = take_stage(sys.argv[1:])
    given = parse("llava", line, kind=f"llava_stage{stage}")
    plan = make_plan(given, open_talks)
    models = llava.load_models(plan.recipe)
    plan = llava.settle(plan, models)
    module = llava.new_module(plan.recipe, models)
    if given.init:
        llava.start_from(module, plan.recipe, given.init)
    kept = {name: p.clone() for name, p in models.encoder.named_parameters()}
    said = {name: p.detach().clone() for name, p in models.language.named_parameters()}
    train(plan, module, partial(llava.conversations, models))
    for name, parameter in models.encoder.named_parameters():
        assert torch.equal(parameter, kept[name]) and not parameter.requires_grad, name
    changed = [
        name
        for name, parameter in models.language.named_parameters()
        if parameter.numel() and not torch.equal(parameter.to(said[name].dtype), said[name])
    ]
    print(f"language weights that changed: {len(changed)} of {len(said)}")


if __name__ == "__main__":
    main()
