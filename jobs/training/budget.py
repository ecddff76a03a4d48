"""What ``--dry-run`` tells of a recipe: parameters, memory, FLOPs and batch arithmetic.

Everything is made on the meta device, so that no weights are needed: of the frozen models only
their sizes, from their folder or, for the paper's, from ``jobs.recipes.published``.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from cluster.ranks.dist import this_process
from jobs.models import encoder_settings, precision
from jobs.models.encoders import load_encoder
from jobs.models.files import dtype_of, local_path
from jobs.recipes import as_json, published
from jobs.recipes.schema import EncoderChoice
from jobs.training import hardware
from jobs.training.command import Given
from jobs.training.hardware import GIB, Gpu
from jobs.training.plan import Plan
from jobs.training.resolve import batch_arithmetic, resolve
from modeling import flops, losses
from modeling.blip2 import Stage1, Stage2
from modeling.flops import Stack
from modeling.precision import multiplies_bf16
from modeling.vision.encoders import ImageEncoder, build_clip_encoder
from modeling.vision.features import PAPER

LIBRARIES = 0.95 * GIB  # of a process that has imported torch, DeepSpeed and transformers


@dataclass(frozen=True)
class Sketch:
    """A recipe's models without weights; None where a frozen model's sizes are not to be had."""

    stage: Stage1 | Stage2
    encoder: ImageEncoder | None
    language: Any


@dataclass(frozen=True)
class Memory:
    """Bytes a rank, by what holds them; activations are an estimate.

    Attributes:
        exchange: gradients and weights on their way between ranks, and what micro-batches share.
        lasting: the part of ``gradients`` and ``exchange`` that is not freed between steps.
        saving: of the main memory of rank 0, while a checkpoint is written.
    """

    weights: float
    gradients: float
    optimizer: float
    frozen: float
    activations: float
    exchange: float
    lasting: float
    saving: float

    @property
    def states(self) -> float:
        """What stays from step to step."""
        return self.weights + self.optimizer + self.frozen

    @property
    def total(self) -> float:
        """Most of the device's memory that a step holds."""
        return self.states + self.gradients + self.activations + self.exchange

    @property
    def on_cpu(self) -> float:
        """Most that rank 0's process holds where the device's memory is the main memory: in a step,
        or in the save at the end (one that is still being written during a step comes on top).
        """
        return LIBRARIES + max(self.total, self.states + self.lasting + self.saving)


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


def check(plan: Plan[Any]) -> None:
    """Print what a run needs, and refuse one that does not fit, before anything is loaded.

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


def report(recipe: Any, world: int, gpu: Gpu | None = None, price: float = 0.0) -> str:
    """The resolved recipe as JSON and, below it, ``table``; arguments as for it."""
    resolved = json.dumps(as_json(recipe), indent=1)
    return "\n".join([resolved, *table(recipe, sketch(recipe), world, gpu, price)])


def table(
    recipe: Any, sketched: Sketch, world: int, gpu: Gpu | None = None, price: float = 0.0
) -> list[str]:
    """What a run will need, in lines for people.

    Args:
        world: ranks to plan for.
        gpu: what each of them runs on, for the time and whether it fits.
        price: of one GPU for an hour, for the cost.

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
    if recipe.kind == "stage2" and sketched.language is None:
        missing.append(f"{recipe.language.name} (language model)")
    if missing:
        lines.append(f"not counted, since its folder is not here: {', '.join(missing)}")
    return lines


def step_flops(recipe: Any, sketched: Sketch, world: int) -> float:
    """FLOPs of a step over all ranks."""
    return sum(sample_flops(recipe, sketched, world).values()) * recipe.run.global_batch


def _expected(gpu: Gpu, world: int, step: float, run: Any, price: float) -> str:
    """How long the run takes on GPUs, and what it costs."""
    seconds = step / (world * gpu.tflops * 1e12 * run.mfu)
    hours = seconds * run.steps / 3600
    cost = f", {hours * world * price:,.0f} at {price:g} a GPU and hour" if price else ""
    return (
        f"expected time:        {_short(seconds)} s a step, "
        f"{_short(run.global_batch / seconds)} samples/s, {_short(hours)} hours on {world} GPUs of "
        f"{gpu.tflops:g} TFLOP/s, if {100 * run.mfu:g}% of that is reached (--mfu){cost}"
    )


def largest_micro(recipe: Any, sketched: Sketch, world: int, room: float) -> int:
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


def check_room(recipe: Any, sketched: Sketch, world: int, available: float, on_cpu: bool) -> None:
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


def sketch(recipe: Any) -> Sketch:
    """The recipe's models on the meta device."""
    with torch.device("meta"):
        stage = Stage1(recipe.model) if recipe.kind == "stage1" else Stage2(recipe.model)
        language = _language(recipe.language.name) if recipe.kind == "stage2" else None
        return Sketch(stage, _encoder(recipe.encoder), language)


def trainable(recipe: Any, sketched: Sketch) -> dict[str, int]:
    """Parameters that train, by part."""
    parts = {"Q-Former and heads": _count(sketched.stage)}
    if recipe.encoder.train:
        parts["encoder"] = _count(sketched.encoder)
    return parts


def frozen_models(recipe: Any, sketched: Sketch) -> dict[str, int]:
    """Parameters that do not, by part."""
    parts = {} if recipe.encoder.train else {"encoder": _count(sketched.encoder)}
    if recipe.kind == "stage2":
        parts["language model"] = _count(sketched.language)
    return parts


def sample_flops(recipe: Any, sketched: Sketch, world: int) -> dict[str, float]:
    """FLOPs of one sample's forward and backward pass, by part; nothing recomputed is in it."""
    parts, tokens = {}, _image_tokens(sketched)
    if sketched.encoder is not None:
        tower = flops.vit_sizes(sketched.encoder.vit)
        parts["encoder"] = flops.vit_flops(tower, recipe.encoder.train)
    if recipe.kind == "stage1":
        work = flops.stage1_work(
            recipe.model,
            tokens,
            recipe.max_text,
            recipe.run.global_batch,
            world,
            learned=recipe.encoder.train,
        )
        return parts | {name: part.trained for name, part in work.items()}
    question = recipe.max_question if recipe.model.qformer.text else 0
    parts["Q-Former"] = flops.stage2_work(
        recipe.model, tokens, question, learned=recipe.encoder.train
    ).trained
    if sketched.language is not None:
        given, targets = _text_lengths(recipe, sketched)
        sizes = flops.language_sizes(sketched.language.config)
        parts["language model"] = flops.language_flops(sizes, given, targets)
    return parts


def plan_memory(recipe: Any, sketched: Sketch, world: int, micro: int) -> Memory:
    """What a rank holds during a step, by ZeRO stage and precision."""
    zero, count = recipe.run.zero, sum(trainable(recipe, sketched).values())
    share = [world if zero.stage >= stage else 1 for stage in (1, 2, 3)]
    cast = zero.precision == "bf16" and zero.stage > 0
    # With bf16 weights the fp32 masters belong to the optimizer's state, beside two moments.
    states = 12 if cast or zero.stage else 8
    frozen = frozen_models(recipe, sketched)
    held = 1.0 * frozen.get("encoder", 0) * _width(recipe.encoder.dtype)
    if recipe.kind == "stage2":
        # Sharded, one block at a time is whole: some four percent of the model.
        part = min(1.0, 1 / world + 0.04) if recipe.language.shard else 1.0
        held += frozen["language model"] * _width(recipe.language.dtype) * part
    accumulation = recipe.run.global_batch // (world * micro)
    # One bucket of fp32 gradients; ZeRO-3 also gathers the weights, and keeps both.
    exchange = {0: 0.0, 3: 4.0 + (2 if cast else 4)}.get(zero.stage, 4.0) * min(zero.bucket, count)
    gradients = 4.0 * count / share[1]
    lasting = gradients + exchange if zero.stage == 3 else 0.0
    if recipe.kind == "stage1" and accumulation > 1:  # all micro-batches see each other's images
        tokens = _image_tokens(sketched) * recipe.model.qformer.encoder_width
        exchange += accumulation * micro * tokens * _width(recipe.encoder.dtype)
    return Memory(
        weights=(2 if cast else 4) * count / share[2],
        gradients=gradients,
        optimizer=states * count / share[0],
        frozen=held,
        activations=micro * _activations(recipe, sketched) + _head(recipe),
        exchange=exchange,
        lasting=lasting,
        saving=20 * count,  # the copy, and what the larger of its two files is written from
    )


def _head(recipe: Any) -> float:
    """Bytes for the words' probabilities and the gradient of their matrix, whatever the batch."""
    logits = 6.0 * losses.CHUNK
    if recipe.kind == "stage1" and recipe.model.itg:
        sizes = recipe.model.qformer
        logits = min(logits, 6.0 * recipe.max_text * sizes.vocab * recipe.run.global_batch)
        logits += 4.0 * sizes.vocab * sizes.width
    return logits


def _activations(recipe: Any, sketched: Sketch) -> float:
    """Bytes that one sample keeps for the backward pass; attention does not keep its scores."""
    width = 2 if recipe.run.zero.precision == "bf16" else 4
    total = 0.0
    if sketched.encoder is not None:
        sizes = flops.vit_sizes(sketched.encoder.vit)
        one = replace(sizes.stack, blocks=1).saved(sizes.tokens, trained=True)
        if not recipe.encoder.train:
            total += one  # nothing is kept, but one block is being computed
        elif recipe.encoder.checkpoint_blocks:
            total += one + sizes.tokens * sizes.stack.width * sizes.stack.blocks
        else:
            total += sizes.stack.saved(sizes.tokens, trained=True)
    total += _qformer_activations(recipe, _image_tokens(sketched))
    if recipe.kind == "stage2" and sketched.language is not None:
        given, targets = _text_lengths(recipe, sketched)
        language = flops.language_sizes(sketched.language.config)
        if language.encoder is None:
            total += language.decoder.saved(given + targets, trained=False)
        else:
            total += language.encoder.saved(given, trained=False)
            total += 1.5 * language.decoder.saved(targets, trained=False)
    return width * total


def _qformer_activations(recipe: Any, image_tokens: int) -> float:
    """Elements that one sample keeps in the Q-Former and its image keys and values."""
    sizes = recipe.model.qformer
    stack = Stack(sizes.width, sizes.layers, sizes.ffn, sizes.width, sizes.width)
    image = 2 * -(-sizes.layers // sizes.cross_every) * image_tokens * sizes.width
    # What ln_vision made of the tokens and, where they have a gradient, its input in fp32.
    seen = (3 if recipe.encoder.train else 1) * image_tokens * sizes.encoder_width
    queries = sizes.queries
    if recipe.kind == "stage2":
        text = recipe.max_question if sizes.text else 0
        return seen + image + stack.saved(queries + text, trained=True)
    text = recipe.max_text
    rows = queries + text + 3 * (queries + text) + (text if recipe.model.itg else 0)
    return seen + 2 * image + stack.saved(rows, trained=True)


def _text_lengths(recipe: Any, sketched: Sketch) -> tuple[float, float]:
    """Tokens given to the language model and tokens learned, of a text of full length."""
    assert sketched.language is not None
    queries, text = recipe.model.qformer.queries, recipe.language.max_text
    if recipe.prompt:
        question = recipe.max_question if "{}" in recipe.prompt else 0
        return queries + len(recipe.prompt.split()) + question, text
    if not sketched.language.config.is_encoder_decoder:
        return queries, text
    prefix, suffix = flops.split_text(text)
    return queries + prefix, suffix


def _image_tokens(sketched: Sketch) -> int:
    return sketched.encoder.num_tokens if sketched.encoder is not None else 257


def _encoder(choice: EncoderChoice) -> ImageEncoder | None:
    """The encoder from its own folder, else from the paper's sizes; None where neither is there."""
    if choice.name.startswith("timm:") or local_path(choice.name) is not None:
        return load_encoder(choice, weights=False)
    if choice.name in published.VISION:
        taken = choice.features.settle(PAPER)
        return build_clip_encoder(
            published.VISION[choice.name](), choice.image_size, features=taken
        )
    return None


def _language(name: str) -> Any:
    folder = local_path(name)
    if folder is None and name not in published.LANGUAGE:
        return None
    config = published.LANGUAGE[name]() if folder is None else AutoConfig.from_pretrained(folder)
    family: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = family.from_config(config)
    if not getattr(config, "scale_decoder_outputs", True):  # FlanT5's head is a matrix of its own
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


def _width(dtype: str) -> int:
    return dtype_of(dtype).itemsize


def _count(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def _short(number: float) -> str:
    """Three digits, and all of those before the point."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}" if number >= 1e-3 or not number else f"{number:.1e}"


def _parts(parts: dict[str, int]) -> str:
    if len(parts) < 2:
        return f" ({next(iter(parts))})" if parts else ""
    return " = " + " + ".join(f"{name} {count:,}" for name, count in parts.items())
