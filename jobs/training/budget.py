"""What a run needs, told before it starts: parameters, memory, FLOPs, time and cost.

``--dry-run`` prints it without data, weights or a GPU, and a run that cannot fit is refused.
"""

import json
from dataclasses import replace
from typing import Any

from cluster.ranks.dist import this_process
from jobs.models import encoder_settings, precision
from jobs.recipes import as_json
from jobs.recipes.schema import (
    LlavaRecipe,
    RunConfig,
    SpeakingRecipe,
    Stage1Recipe,
    Stage2Recipe,
    TrainRecipe,
)
from jobs.training import hardware
from jobs.training.command import Given
from jobs.training.hardware import GIB, Gpu
from jobs.training.memory import plan_memory
from jobs.training.plan import Plan, RecipeT
from jobs.training.resolve import batch_arithmetic, resolve
from jobs.training.sketch import (
    Sketch,
    frozen_models,
    image_tokens,
    language_trains,
    sketch,
    text_lengths,
    trainable,
)
from modeling import flops
from modeling.precision import multiplies_bf16


def print_dry_run(given: Given[Any]) -> int:
    """Print the resolved recipe and what it needs; the exit code, 0.

    Raises:
        ValueError: a model's folder that cannot be used, an unknown GPU, or a batch that the ranks
            cannot share.
    """
    here = this_process()
    world = given.world or here.world
    gpu = hardware.gpu(given.gpu) if given.gpu else hardware.this_gpu()
    recipe = resolve(given.config, world, fetch=False)
    recipe = precision.resolve(recipe, gpu is not None or multiplies_bf16(here.device))
    print(report(recipe, world, gpu, given.price))
    return 0


def check(plan: Plan[RecipeT]) -> Plan[RecipeT]:
    """Print what a run needs, and refuse one that does not fit, before anything is loaded.

    Returns:
        The plan with the FLOPs of a step.

    Raises:
        ValueError: it does not fit; names the numbers and a remedy.
    """
    here = this_process()
    recipe = precision.resolve(plan.recipe, multiplies_bf16(here.device))
    sketched = sketch(recipe)
    check_room(recipe, sketched, here.world, *hardware.room(here.world))
    if here.rank == 0:
        print(encoder_settings.describe(recipe.encoder), flush=True)
        lines = table(recipe, sketched, here.world, hardware.this_gpu())
        print(*lines, sep="\n", flush=True)
    return replace(plan, step_flops=step_flops(recipe, sketched, here.world))


def report(recipe: TrainRecipe, world: int, gpu: Gpu | None = None, price: float = 0.0) -> str:
    """The resolved recipe as JSON and, below it, ``table``; arguments as for it."""
    resolved = json.dumps(as_json(recipe), indent=1)
    return "\n".join([resolved, *table(recipe, sketch(recipe), world, gpu, price)])


def table(
    recipe: TrainRecipe, sketched: Sketch, world: int, gpu: Gpu | None = None, price: float = 0.0
) -> list[str]:
    """The needs of a run, in lines for people.

    Args:
        world: number of ranks.
        gpu: accelerator of each rank, for the time and whether the run fits.
        price: price of one GPU for an hour, for the cost.

    Raises:
        ValueError: the global batch cannot be cut for these ranks.
    """
    micro, accumulation = batch_arithmetic(recipe.run, world)
    run, trained, frozen = recipe.run, trainable(recipe, sketched), frozen_models(recipe, sketched)
    memory = plan_memory(recipe, sketched, world, micro)
    compute = sample_flops(recipe, sketched, world)
    sample = sum(compute.values())
    parts = ", ".join(f"{name} {_short(value / 1e9)}" for name, value in compute.items())
    held = {k: v for k, v in vars(memory).items() if k not in {"lasting", "saving"}}
    gib = ", ".join(f"{name} {_short(value / GIB)}" for name, value in held.items())
    step = sample * run.global_batch
    lines = [
        f"trainable parameters: {sum(trained.values()):,}{_parts(trained)}",
        f"frozen parameters:    {sum(frozen.values()):,}{_parts(frozen)}",
        f"global batch {run.global_batch} = {world} ranks x {micro} x {accumulation} accumulated; "
        f"{run.steps:,} steps see {run.steps * run.global_batch:,} samples",
        f"memory a rank, GiB:   {_short(memory.total / GIB)} = {gib} "
        f"(ZeRO-{run.zero.stage}, {run.zero.precision}; activations estimated)",
        f"a checkpoint, GiB:    {_short(12 * sum(trained.values()) / GIB)}; while it is written, "
        f"{_short(memory.saving / GIB)} of rank 0's main memory",
        f"on CPU, GiB a rank:   {_short(memory.on_cpu / GIB)} with libraries and the last save",
        f"GFLOP a sample:       {_short(sample / 1e9)} = {parts}",
        f"PFLOP a step:         {_short(step / 1e15)}, a rank {_short(step / world / 1e15)}; "
        f"the run {_short(step * run.steps / 1e18)} EFLOP",
    ]
    if gpu is not None:
        fitting = largest_micro(recipe, sketched, world, gpu.memory * GIB)
        fits = memory.total <= gpu.memory * GIB
        said = "it fits" if fits else f"IT DOES NOT FIT; {_remedy(fitting)}"
        lines += [
            f"on a GPU of {_short(gpu.memory)} GiB: {said}",
            _expected(gpu, world, step, recipe.run, price),
        ]
    missing = [f"{recipe.encoder.name} (encoder)"] if sketched.encoder is None else []
    if isinstance(recipe, SpeakingRecipe) and sketched.language is None:
        missing.append(f"{recipe.language.name} (language model)")
    if missing:
        lines.append(f"not counted, since its folder is not here: {', '.join(missing)}")
    return lines


def step_flops(recipe: TrainRecipe, sketched: Sketch, world: int) -> float:
    """FLOPs of a step over all ranks."""
    return sum(sample_flops(recipe, sketched, world).values()) * recipe.run.global_batch


def _expected(gpu: Gpu, world: int, step: float, run: RunConfig, price: float) -> str:
    """How long the run takes on GPUs, and what it costs."""
    seconds = step / (world * gpu.tflops * 1e12 * run.mfu)
    hours = seconds * run.steps / 3600
    cost = f", {hours * world * price:,.0f} at {price:g} a GPU and hour" if price else ""
    return (
        f"expected time:        {_short(seconds)} s a step, "
        f"{_short(run.global_batch / seconds)} samples/s, {_short(hours)} hours on {world} GPUs of "
        f"{gpu.tflops:g} TFLOP/s, if {100 * run.mfu:g}% of that is reached (--mfu){cost}"
    )


def sample_flops(recipe: TrainRecipe, sketched: Sketch, world: int) -> dict[str, float]:
    """FLOPs of one sample's forward and backward pass, by part; nothing recomputed is in it."""
    parts: dict[str, float] = {}
    tokens = image_tokens(sketched)
    if sketched.encoder is not None:
        tower = flops.vit_sizes(sketched.encoder.vit)
        parts["encoder"] = flops.vit_flops(tower, recipe.encoder.train)
    if isinstance(recipe, Stage1Recipe):
        work = flops.stage1_work(
            recipe.model,
            tokens,
            recipe.max_text,
            recipe.run.global_batch,
            world,
            learned=recipe.encoder.train,
        )
        return parts | {name: part.trained for name, part in work.items()}
    if isinstance(recipe, LlavaRecipe):
        return parts | _llava_flops(recipe, sketched, tokens)
    assert isinstance(recipe, Stage2Recipe)
    question = recipe.max_question if recipe.model.qformer.text else 0
    parts["Q-Former"] = flops.stage2_work(
        recipe.model, tokens, question, learned=recipe.encoder.train
    ).trained
    if sketched.language is not None:
        given, targets = text_lengths(recipe, sketched)
        sizes = flops.language_sizes(sketched.language.config)
        parts["language model"] = flops.language_flops(sizes, given, targets)
    return parts


def _llava_flops(recipe: LlavaRecipe, sketched: Sketch, tokens: int) -> dict[str, float]:
    """FLOPs of LLaVA's bridge and language model for a usual sample, half of it targets."""
    sizes = recipe.model
    first = flops.Work(2 * tokens * sizes.llm_width * sizes.encoder_width)
    second = flops.Work(2 * tokens * sizes.llm_width**2 * (sizes.bridge == "mlp2x_gelu"))
    parts = {"bridge": 2 * first.forward + second.trained}  # the encoder's tokens get no gradient
    if sketched.language is not None:
        half = recipe.usual_text / 2
        language = flops.language_sizes(sketched.language.config)
        learned = language_trains(recipe)
        given = tokens + half
        parts["language model"] = flops.language_flops(language, given, half, learned=learned)
    return parts


def largest_micro(recipe: TrainRecipe, sketched: Sketch, world: int, room: float) -> int:
    """The largest micro-batch that fits; 0 where not even one sample does."""
    share = recipe.run.global_batch // world
    for micro in range(share, 0, -1):
        if share % micro == 0 and plan_memory(recipe, sketched, world, micro).total <= room:
            return micro
    return 0


def _remedy(micro: int) -> str:
    if micro:
        return f"--micro-batch {micro} would"
    return "not with one sample either: --zero-stage 3 and more ranks, or a smaller model"


def check_room(
    recipe: TrainRecipe, sketched: Sketch, world: int, available: float, on_cpu: bool
) -> None:
    """Refuse what cannot fit before anything is loaded.

    Args:
        available: bytes that a rank may take.
        on_cpu: the device's memory is the main memory, checkpoints included.

    Raises:
        ValueError: it does not fit; names the numbers and a remedy.
    """
    micro, _ = batch_arithmetic(recipe.run, world)
    memory = plan_memory(recipe, sketched, world, micro)
    needed = memory.on_cpu if on_cpu else memory.total
    if needed > available:
        remedy = _remedy(largest_micro(recipe, sketched, world, available))
        raise ValueError(
            f"--micro-batch {micro}: a rank needs about {_short(needed / GIB)} GiB, "
            f"{_short(available / GIB)} GiB are free; {remedy}. --dry-run shows the parts"
        )


def _short(number: float) -> str:
    """Three digits, and all of those before the point."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}" if number >= 1e-3 or not number else f"{number:.1e}"


def _parts(parts: dict[str, int]) -> str:
    if len(parts) < 2:
        return f" ({next(iter(parts))})" if parts else ""
    return " = " + " + ".join(f"{name} {count:,}" for name, count in parts.items())
