"""A training run: what it is made of, how it starts or resumes, what it saves.

What a step computes is a function of the recipe, the data and its number (``train_steps``). A
checkpoint therefore holds trainable state and a step number, and a resumed run makes the losses
that it would have made without the interruption.
"""

import dataclasses
import hashlib
import json
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cluster import checkpoint
from cluster.malloc import keep_freed_memory
from cluster.ranks import dist, supervise, zero
from cluster.ranks.dist import Process, StopSignal
from cluster.ranks.guard import Guard
from cluster.ranks.watchdog import Watchdog
from cluster.runlog import RunLog
from cluster.storage.cache import default_folder
from jobs import recipes
from jobs.models import encoder_settings, languages, precision
from jobs.recipes.schema import RunConfig
from jobs.training import hardware
from jobs.training.loop import Loop
from jobs.training.objective import Task
from jobs.training.validation import Validation
from modeling import linear
from modeling.optim import parameter_groups
from pipeline.loading.loader import Batches, LoaderConfig, Samples, make_schedule
from pipeline.loading.schedule import Schedule
from pipeline.shards.reading import Shards, data_hash, open_shards
from pipeline.transforms import TrainTransform

# What may differ between a run and its resumption; the rest decides what the run computes.
FREE = ("steps", "micro_batch", "save_every", "keep", "log_every", "bad_limit")
FREE_PARTS = (
    "tensorboard",
    "wandb",
    "validate_",
    "profile_at",
    "mfu",
    "language.shard",
    "guard.limit",
    "zero",
    "loader.workers",
    "loader.prefetch",
    "loader.cache",
    "loader.fetch_ahead",
    "optim.total_steps",
)


@dataclass(frozen=True)
class Plan:
    """A run that has been checked and can start: recipe, data, order, and where it stands.

    Attributes:
        recipe: the run's; formats that are ``auto`` are settled when all ranks are there.
        out: where the run's log is written: its folder, or one of this node's for ``s3://``.
        writer: saves its checkpoints.
        found: the one it goes on from.
        validation: samples to measure the losses on.
        step_flops: of a step over all ranks, for the log's share of the peak (MFU).
    """

    recipe: Any
    out: Path
    sources: tuple[Shards, ...]
    schedule: Schedule
    writer: checkpoint.Writer
    found: checkpoint.Checkpoint | None
    validation: tuple[Shards, ...] = ()
    step_flops: float = 0.0

    @property
    def run(self) -> RunConfig:
        """The recipe's run configuration."""
        return self.recipe.run

    @property
    def done(self) -> int:
        """Steps made before this start."""
        return self.found.step if self.found else 0

    def digest(self) -> str:
        """Hash of all that decides what the run computes; ranks compare it before they start."""
        text = json.dumps([as_json(self.recipe), data_hash(self.sources), self.done])
        return hashlib.sha256((text + self.schedule.fingerprint()).encode()).hexdigest()


OpenData = Callable[[str, LoaderConfig], tuple[Shards, ...]]


def open_sources(data: str, config: LoaderConfig) -> tuple[Shards, ...]:
    """The sources of ``--data``: CapFilt outputs or folders of tars, separated by commas.

    Raises:
        ValueError: one of them cannot be used.
    """
    cache = config.node_cache()
    return tuple(open_shards(url, cache) for url in data.split(",") if url)


def prepare(
    recipe: Any,
    data: str,
    out: str,
    epochs: float = 0.0,
    open_data: OpenData = open_sources,
    *,
    init: str = "",
) -> Plan:
    """Open the data and the run's folder.

    Args:
        epochs: passes over the samples; 0 leaves the recipe's steps.
        init: what ``--init`` names; a new run shows its encoder what that one showed it.

    Raises:
        ValueError: data or a checkpoint that cannot be used; names field, value and remedy.
    """
    sources = open_data(data, recipe.run.loader)
    if epochs:
        samples = sum(sum(source.sizes) for source in sources)
        recipe = with_steps(recipe, math.ceil(epochs * samples / recipe.run.global_batch))
    schedule = make_schedule(sources, recipe.run.loader, recipe.run.seed, recipe.run.global_batch)
    store = checkpoint.open_store(out)
    found, damaged = checkpoint.resume(store)
    before = found.recipe if found else encoder_settings.of_init(init)
    recipe = encoder_settings.settled(recipe, before)
    writer = checkpoint.Writer(store, recipe.run.keep, found.where if found else "")
    recipe = languages.settle_text(recipe, found.recipe if found else None)
    plan = Plan(recipe, store.folder, sources, schedule, writer, found)
    if found is not None:
        recipe = precision.keep(recipe, _recipe_of(found, recipe))
        plan = replace(plan, recipe=recipe)
        _check_same(found, plan)
    plan = replace(plan, recipe=_with_micro_batch(recipe, found))
    if dist.this_process().rank == 0:
        store.pull_logs()
        for line in checkpoint.set_aside(store, damaged, found) if found else ():
            print(line, flush=True)
    return plan


def with_steps(recipe: Any, steps: int) -> Any:
    """The recipe with this many steps, its learning-rate schedule following them."""
    run = recipe.run
    warmup = min(run.optim.warmup_steps, steps // 2)
    optim = replace(run.optim, total_steps=steps, warmup_steps=warmup)
    return replace(recipe, run=replace(run, steps=steps, optim=optim))


def _with_micro_batch(recipe: Any, found: checkpoint.Checkpoint | None) -> Any:
    """The recipe with its micro-batch settled. A run that is resumed keeps the one it had, where
    nobody asks for another and this number of ranks can make it: on fewer ranks it still fits in
    memory, and gradients are rounded to bf16 as before.
    """
    run, world = recipe.run, dist.this_process().world
    before = found.recipe["run"].get("micro_batch", 0) if found else 0
    if not run.micro_batch and before and run.global_batch % (world * before) == 0:
        run = replace(run, micro_batch=before)
    micro, _ = batch_arithmetic(run, world)
    return replace(recipe, run=replace(run, micro_batch=micro))


def train(plan: Plan, make_task: Callable[[Any, torch.device], Task]) -> int:
    """Run (or resume) a plan to its last step.

    Args:
        plan: the run; its formats are settled here, by the devices of all ranks.
        make_task: (recipe, device) -> what the loop needs.

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
    here = zero.start(run.zero.timeout_s)
    watchdog = Watchdog(run.zero.timeout_s, here.rank)
    plan = replace(plan, recipe=precision.resolve(plan.recipe, precision.agreed(here.device)))
    run = plan.run
    linear.CHOICES.keep_in(default_folder())
    if plan.found is not None:
        linear.CHOICES.follow(plan.found.state.get("products", {}))
    if not dist.same_everywhere(plan.digest()):
        raise ValueError("ranks see different data or recipes; give all nodes the same --data")
    task = make_task(plan.recipe, here.device)
    micro, accumulation = batch_arithmetic(run, here.world)
    optimizer = torch.optim.AdamW(
        parameter_groups(task.module, run.optim),
        lr=run.optim.lr,
        betas=run.optim.betas,
        eps=run.optim.eps,
        fused=True,  # it is also what lets the guard skip an update without a look at the device
    )
    engine = zero.engine(task.module, optimizer, run.zero, micro, accumulation)
    if plan.found is not None:
        checkpoint.restore(engine, plan.found)
    guarded = plan.found.state.get("guard") if plan.found else None
    guard = Guard(engine, run.guard, run.zero.clip, guarded)
    log = _log(plan, here)
    log.say(_opening(plan, here, micro, accumulation))
    if warning := precision.slow_word(plan.recipe, here.device, plan.found is not None):
        log.say(warning)
    validation = None
    if plan.validation:
        validation = Validation(plan.validation, run, here, accumulation, plan.recipe.text)

    def write(step: int, last: bool, metric: float | None) -> None:
        state = _state(plan, here, step, guard)
        recipe = as_json(plan.recipe)
        plan.writer.save(engine, here, recipe=recipe, state=state, metric=metric, last=last)

    loop = Loop(
        run=run,
        here=here,
        engine=engine,
        task=task,
        log=log,
        guard=guard,
        watchdog=watchdog,
        stop=stop,
        save=write,
        accumulation=accumulation,
        validation=validation,
    )
    transform = TrainTransform(run.transform)
    steps = range(plan.done, run.steps)
    with Batches(
        Samples(plan.sources, plan.schedule, transform, run.loader.captions, text=plan.recipe.text),
        run.loader,
        steps,
        rank=here.rank,
        world=here.world,
        accumulation=accumulation,
        tokenise=task.tokenise,
    ) as batches:
        loop.go(batches, steps)
    watchdog.stop()
    log.close()
    zero.stop()
    return 0


def _log(plan: Plan, here: Process) -> RunLog:
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


def _state(plan: Plan, here: Process, step: int, guard: Guard) -> dict[str, Any]:
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
        "precision": precision.formats(plan.recipe),
        "processor": precision.processor(here.device),
        "products": dict(sorted(linear.CHOICES.made.items())),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "deepspeed": deepspeed.__version__,
        },
    }


def batch_arithmetic(run: RunConfig, world: int) -> tuple[int, int]:
    """(micro-batch, accumulation) of each rank, so that world x micro x accumulation = global.

    Raises:
        ValueError: the global batch is not such a product.
    """
    share, rest = divmod(run.global_batch, world)
    micro = run.micro_batch or share
    if rest or micro < 1 or share % micro:
        raise ValueError(
            f"--global-batch {run.global_batch} is not {world} ranks x micro-batches of "
            f"{micro or 'at least 1'}; give a multiple of {world * max(1, micro)}"
        )
    return micro, share // micro


def as_json(recipe: Any) -> dict[str, Any]:
    """A recipe as JSON will give it back."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def _opening(plan: Plan, here: Process, micro: int, accumulation: int) -> str:
    start = f"resuming from {plan.found.where}" if plan.found else "starting"
    samples = sum(sum(source.sizes) for source in plan.sources)
    return (
        f"{plan.recipe.kind} {plan.recipe.name}: {start} at step {plan.done} of {plan.run.steps}; "
        f"global batch {plan.run.global_batch} = {here.world} ranks x {micro} x {accumulation} "
        f"accumulated; {samples:,} samples, {plan.run.global_batch * plan.run.steps / samples:.2f} "
        f"epochs; ZeRO-{plan.run.zero.stage} on {here.device.type} "
        f"({precision.processor(here.device)}); precision: {precision.described(plan.recipe)}"
    )


def _recipe_of(found: checkpoint.Checkpoint, like: Any) -> Any:
    """A checkpoint's recipe with defaults for what an older version lacked; ``like`` itself where
    the checkpoint is of another kind, which is refused elsewhere.
    """
    if found.recipe.get("kind") != like.kind:
        return like
    written = encoder_settings.with_older(found.recipe)
    return recipes.from_dict(type(like), written, f"checkpoint {found.folder}")


def _check_same(found: checkpoint.Checkpoint, plan: Plan) -> None:
    """Refuse to continue a run with another recipe or other data."""
    mine, theirs, out = as_json(plan.recipe), found.recipe, plan.writer.url
    if theirs.get("kind") == mine["kind"]:
        theirs = as_json(_recipe_of(found, plan.recipe))
    for field in ("kind", "name"):
        if theirs.get(field) != mine[field]:
            raise ValueError(
                f"--out {out} holds a checkpoint of {field} {theirs.get(field)!r}, this is "
                f"{mine[field]!r}; give another --out, or the recipe it was started with"
            )
    for field, then, now in _differences(theirs, mine, ""):
        name = field.removeprefix("run.")
        if (
            name not in FREE
            and not name.startswith(FREE_PARTS)
            and not _follows(name, theirs, mine)
        ):
            raise ValueError(
                f"--out {out} was started with {name} = {then!r}, this run has {now!r}; "
                "give the same value to resume, or another --out"
            )
    now_hash, then_hash = data_hash(plan.sources), found.state.get("manifest")
    if now_hash != then_hash:
        raise ValueError(
            f"--data {','.join(source.name for source in plan.sources)}: manifest {now_hash} is "
            f"not the checkpoint's {then_hash} ({found.where}); give the data it was trained on, "
            "or another --out"
        )


def _follows(name: str, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    """A shortened warm-up follows from another number of steps."""
    return name == "optim.warmup_steps" and theirs["run"]["steps"] != mine["run"]["steps"]


def _differences(then: Any, now: Any, where: str) -> list[tuple[str, Any, Any]]:
    if isinstance(then, dict) and isinstance(now, dict):
        keys = sorted(then.keys() | now.keys())
        parts = (_differences(then.get(k), now.get(k), f"{where}.{k}".strip(".")) for k in keys)
        return [difference for part in parts for difference in part]
    return [] if then == now else [(where, then, now)]
