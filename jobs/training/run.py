"""A training run from the meeting of its ranks to its last step.

What a step computes is a function of the recipe, the data and its number (``jobs.training.loop``).
A checkpoint therefore holds trainable state and a step number, and a resumed run makes the losses
that it would have made without the interruption.
"""

import platform
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cluster import checkpoint
from cluster.malloc import keep_freed_memory
from cluster.ranks import dist, supervise, zero
from cluster.ranks.dist import Process, StopSignal
from cluster.ranks.guard import Guard
from cluster.ranks.peers import PATIENCE_S, Peers
from cluster.ranks.watchdog import Watchdog
from cluster.runlog import RunLog
from cluster.storage.cache import default_folder
from jobs import recipes
from jobs.models import precision
from jobs.recipes.schema import RunConfig
from jobs.training import hardware
from jobs.training.loop import Loop
from jobs.training.objective import Objective
from jobs.training.plan import Plan, RecipeT
from jobs.training.resolve import batch_arithmetic
from jobs.training.validation import Validation
from modeling import linear
from modeling.optim import parameter_groups
from pipeline.loading.loader import Batches, Samples
from pipeline.shards.reading import data_hash
from pipeline.transforms import TrainTransform


def train(
    plan: Plan[RecipeT],
    module: nn.Module,
    make_objective: Callable[[RecipeT, nn.Module, torch.device], Objective],
) -> int:
    """Run (or resume) a plan to its last step.

    Args:
        plan: the run; its number formats are settled here, by the devices of all ranks.
        module: all that trains.
        make_objective: (recipe, module, device) -> what the loop needs (``objectives``).

    Returns:
        The exit code. A process of several ranks does not return: it ends with that code.

    Raises:
        ValueError: ranks that see different data, a batch that ranks do not divide, a checkpoint
            of other shapes, or too many unreadable samples.
        FloatingPointError: too many steps were not finite, or spikes; none of them was applied.
        NotSaved: the last checkpoint could not be written.
    """
    run = plan.run
    if plan.found is not None and plan.done >= run.steps:
        if dist.this_process().rank == 0:
            print(f"{plan.writer.url} is at step {plan.done} of {run.steps}: nothing to do")
        return 0
    keep_freed_memory()
    stop = StopSignal()
    supervise.start(run.zero.timeout_s)
    if run.deterministic:
        dist.repeat_to_the_bit()
    here = zero.start(run.zero.timeout_s)
    plan = _agreed(plan, here)
    run = plan.run
    objective = make_objective(plan.recipe, module, here.device)
    micro, accumulation = batch_arithmetic(run, here.world)
    engine, guard = start_engine(objective.module, run, micro, accumulation, plan.found)
    log = _log(plan, here)
    log.say(_opening(plan, here, micro, accumulation))
    if warning := precision.slow_word(plan.recipe, here.device, not plan.fresh):
        log.say(warning)
    validation, pixels = None, plan.recipe.encoder.pixels
    if plan.validation:
        validation = Validation(
            plan.validation, run, here, accumulation, text=plan.recipe.text, pixels=pixels
        )

    def save(step: int, last: bool, metric: float | None) -> None:
        state = _state(plan, here, step, guard)
        recipe = recipes.as_json(plan.recipe)
        plan.writer.save(engine, here, recipe=recipe, state=state, metric=metric, last=last)

    # From here on: loading models may take longer than a step ever should.
    watchdog = Watchdog(run.zero.timeout_s, here.rank)
    peers = Peers(here, min(run.zero.timeout_s / 2, PATIENCE_S))
    loop = Loop(
        run=run,
        here=here,
        engine=engine,
        objective=objective,
        log=log,
        guard=guard,
        watchdog=watchdog,
        stop=stop,
        save=save,
        accumulation=accumulation,
        validation=validation,
    )
    steps = range(plan.done, run.steps)
    with _batches(plan, here, accumulation, objective, steps) as batches:
        loop.go(batches, steps)
    watchdog.stop()
    peers.stop()
    log.close()
    zero.stop()
    return 0 if here.world == 1 else zero.leave(0)


def _agreed(plan: Plan[RecipeT], here: Process) -> Plan[RecipeT]:
    """The plan with the number formats that all ranks' devices multiply, the same on every rank.

    Raises:
        ValueError: ranks see different data or recipes.
    """
    plan = replace(plan, recipe=precision.resolve(plan.recipe, precision.agreed(here.device)))
    linear.CHOICES.keep_in(default_folder())
    if plan.found is not None:
        linear.CHOICES.follow(plan.found.state.get("products", {}))
    if not dist.same_everywhere(plan.digest()):
        raise ValueError("ranks see different data or recipes; give all nodes the same --data")
    return plan


def _batches(
    plan: Plan[Any], here: Process, accumulation: int, objective: Objective, steps: range
) -> Batches:
    """This rank's batches of the steps."""
    loader = plan.run.loader
    transform = TrainTransform(plan.run.transform, plan.recipe.encoder.pixels)
    return Batches(
        Samples(plan.sources, plan.schedule, transform, loader.captions, text=plan.recipe.text),
        loader,
        steps,
        rank=here.rank,
        world=here.world,
        accumulation=accumulation,
        tokenise=objective.tokenise,
    )


def start_engine(
    module: nn.Module,
    run: RunConfig,
    micro: int,
    accumulation: int = 1,
    found: checkpoint.Checkpoint | None = None,
) -> tuple[Any, Guard]:
    """DeepSpeed's engine around a module, and its guard.

    Args:
        micro: samples that a rank takes at once.
        accumulation: micro-batches of a step.
        found: checkpoint whose state they get; None: a new run.

    Raises:
        ValueError: the checkpoint's tensors are not those of the module.
    """
    optimizer = torch.optim.AdamW(
        parameter_groups(module, run.optim),
        lr=run.optim.lr,
        betas=run.optim.betas,
        eps=run.optim.eps,
        fused=True,  # it is also what lets the guard skip an update without a look at the device
    )
    engine = zero.engine(module, optimizer, run.zero, micro, accumulation)
    if found is not None:
        checkpoint.restore(engine, found)
    guarded = found.state.get("guard") if found else None
    return engine, Guard(engine, run.guard, run.zero.clip, guarded)


def _log(plan: Plan[Any], here: Process) -> RunLog:
    run, gpu = plan.run, hardware.this_gpu()
    peak = gpu.tflops * 1e12 * here.world if gpu and plan.step_flops else 0.0
    return RunLog(
        plan.out,
        here,
        steps=run.steps,
        done=plan.done,
        every=run.log_every,
        samples=run.global_batch,
        tensorboard=run.tensorboard,
        wandb=run.wandb,
        peak_steps_per_s=peak / plan.step_flops if peak else 0.0,
    )


def _state(plan: Plan[Any], here: Process, step: int, guard: Guard) -> dict[str, Any]:
    """What a checkpoint of ``step`` updates says besides its tensors."""
    import deepspeed

    return {
        "step": step,
        "guard": guard.state(),
        "seed": plan.run.seed,
        "global_batch": plan.run.global_batch,
        "manifest": data_hash(plan.sources),
        "data": [source.name for source in plan.sources],
        "schedule": plan.schedule.fingerprint(),
        "world": here.world,
        "deterministic": plan.run.deterministic,
        "precision": precision.formats(plan.recipe),
        "processor": precision.processor(here.device),
        "products": dict(sorted(linear.CHOICES.made.items())),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "deepspeed": deepspeed.__version__,
        },
    }


def _opening(plan: Plan[Any], here: Process, micro: int, accumulation: int) -> str:
    """The run in one line, for its log."""
    run = plan.run
    start = f"resuming from {plan.found.where}" if plan.found else "starting"
    return (
        f"{plan.recipe.kind} {plan.recipe.name}: {start} at step {plan.done} of {run.steps}; "
        f"global batch {run.global_batch} = {here.world} ranks x {micro} x {accumulation} "
        f"accumulated; {plan.samples:,} samples, "
        f"{run.global_batch * run.steps / plan.samples:.2f} epochs; "
        f"ZeRO-{run.zero.stage} on {here.device.type} "
        f"({precision.processor(here.device)}); precision: {precision.described(plan.recipe)}"
        + ("; deterministic" if run.deterministic else "")
    )
