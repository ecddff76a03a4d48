"""The cost of a stage-1 step as the batch, the texts and the number of ranks grow.

    python jobs/benchmark.py scale
    python jobs/benchmark.py scale --worlds 1 2 --network 25 --gpu-peak 312 --share 0.4

Measured are the seconds of a step by batch and by text length; then, on 1 to 4 gloo ranks with the
same batch each, the seconds of a step and the bytes that a rank receives in it, counted at the
collectives. Beside them stands the reference's exchange: it gathers the image tokens of all ranks
for the negatives of image-text matching, with a gradient that returns the same way.

Simulated are 8 to 1024 GPUs at the paper's size (ViT-g, 257 tokens, 32 text tokens, bf16):

    seconds = FLOPs / (gpu_peak x share) + bytes received / bandwidth + collectives x latency

FLOPs come from the formulas of modeling/flops.py; the share of the peak is measured here unless it
is given; the bandwidth of a GPU is `nvlink` within a node of `node` GPUs, else `network`. The
exchange is that of the engine as it is set (``cluster.ranks.zero``): ZeRO-2 sums the gradients in
fp32, in buckets of ``zero.bucket`` numbers, and gathers the updated weights in bf16. It overlaps
with the backward pass only if the engine's settings say so, or `overlap` assumes it.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
import torch.distributed as dist
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from cluster.malloc import keep_freed_memory
from cluster.ranks.zero import ZeroConfig, to_deepspeed
from jobs.benchmarks import measure as bench
from jobs.benchmarks.traffic import received, reference_exchange
from jobs.benchmarks.train_contenders import SIZES, text_batch
from modeling import flops
from modeling.blip2 import Stage1, Stage1Config
from modeling.flops import Stack, VitSizes
from modeling.vision.encoders import EvaConfig

MIB, GIB = 2**20, 2**30
ENGINE = ZeroConfig(precision="bf16")
TOKENS, TEXT, WIDTH = 257, 32, 2  # of the simulated GPUs; bytes of a bf16 number
LOGITS, STATE = 4, 4  # bytes of what is gathered for ITC, and of a gradient
BUCKET = STATE * ENGINE.bucket


@dataclass(frozen=True)
class ScaleBench:
    """Options of the scaling benchmark: measured sizes and assumptions of the simulation.

    Attributes:
        size: models, as in the training benchmark.
        batches: samples of a rank; the largest is used for the texts, the ranks and the GPUs.
        texts: tokens of a text; the largest is used for the batches and the ranks.
        worlds: numbers of ranks.
        rounds: steps of each kind; the median counts.
        gpus: numbers of simulated GPUs.
        gpu_batch: samples of a simulated GPU; the paper has 1680 on 16.
        gpu_peak: matrix products of a simulated GPU in bf16, TFLOP/s (measured on an H200).
        share: part of that peak that a step reaches; 0 takes the part measured here.
        node: GPUs in a node.
        nvlink, network: GB/s that a GPU receives within and between nodes (NVLink 4; 400 Gb/s
            InfiniBand for each GPU).
        latency: microseconds of a collective call, for each doubling of the ranks.
        overlap: part of the gradients' exchange that the backward pass hides; -1 takes what the
            engine's settings hide.
    """

    size: str = "base"
    batches: tuple[int, ...] = (2, 4, 8)
    texts: tuple[int, ...] = (8, 16, 32)
    worlds: tuple[int, ...] = (1, 2, 4)
    rounds: int = 3
    gpus: tuple[int, ...] = (8, 16, 64, 256, 1024)
    gpu_batch: int = 105
    gpu_peak: float = 790.0
    share: float = 0.0
    node: int = 8
    nvlink: float = 450.0
    network: float = 50.0
    latency: float = 10.0
    overlap: float = -1.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """Measurements of one step, on one rank or the largest of several.

    Attributes:
        seconds: duration of our step.
        model_bytes: bytes received by the model's collectives.
        gradient_bytes: bytes received by the exchange of gradients.
        reference_bytes: bytes received by the reference's gather of image tokens, there and back.
        reference_seconds: duration of that gather alone.
        memory: largest number of bytes in the process.
    """

    seconds: float
    model_bytes: float
    gradient_bytes: float
    reference_bytes: float
    reference_seconds: float
    memory: float


def main(arguments: Sequence[str]) -> int:
    """Measure, simulate, report.

    Raises:
        ValueError: there is no such size; the message names those there are.
    """
    args = tyro.cli(ScaleBench, args=arguments, description=__doc__)
    if args.size not in SIZES:
        raise ValueError(f"--size {args.size!r}: choose one of {', '.join(SIZES)}")
    steps = all_worlds(args)  # first: this process holds nothing yet
    keep_freed_memory()
    batch, text = max(args.batches), max(args.texts)
    peak = bench.matmul_peak("cpu", torch.float32)
    by_batch = {size: step_seconds(args, size, text) for size in args.batches}
    by_text = {length: step_seconds(args, batch, length) for length in args.texts}
    rows = [["", "ms/step", "ms/sample"]]
    for size, spent in by_batch.items():
        rows.append(_row(f"batch {size}, {text} tokens", spent, spent / size))
    for length, spent in by_text.items():
        rows.append(_row(f"batch {batch}, {length} tokens", spent, spent / batch))
    share = args.share or step_flops(args, batch, text) / by_batch[batch] / peak
    print(bench.table(rows) + "\n")

    print(bench.table(rank_rows(steps)) + "\n")
    simulated = {gpus: simulate(args, gpus, share) for gpus in args.gpus}
    print(assumptions(args, share))
    bench.report(
        simulated_rows(simulated),
        {
            "benchmark": "scale",
            **bench.machine("cpu"),
            **args.__dict__,
            "share": round(share, 4),
            "seconds_by_batch": by_batch,
            "seconds_by_text": by_text,
            "ranks": {world: vars(step) for world, step in steps.items()},
            "simulated": simulated,
        },
    )
    return 0


# ---------------------------------------------------------------------------- batch and text


def step_seconds(args: ScaleBench, batch: int, text: int) -> float:
    """Median seconds of a step of one rank."""
    run = partial(one_step, *model_and_batch(args, batch, text, seed=0))
    run()
    return bench.in_turns({"step": run}, args.rounds, "cpu")["step"].median


def model_and_batch(
    args: ScaleBench, batch: int, text: int, seed: int
) -> tuple[Stage1, tuple[Tensor, Tensor, Tensor]]:
    """Stage 1 with the same weights on every rank, and a rank's own batch."""
    size = SIZES[args.size]
    torch.manual_seed(0)
    module = Stage1(size.stage1)
    torch.manual_seed(1 + seed)
    tokens = torch.randn(batch, size.image_tokens, size.stage1.qformer.encoder_width)
    ids, mask = text_batch([text] * batch, size.stage1.qformer.vocab - 2, "cpu")
    return module, (tokens, ids, mask)


def one_step(module: Stage1, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Forward, backward, and the average of the gradients over ranks."""
    module.zero_grad(set_to_none=True)
    module(*inputs)["loss"].backward()
    average(module)


def average(module: nn.Module) -> None:
    """Averages gradients over ranks, in the engine's buckets."""
    if not dist.is_initialized():
        return
    bucket: list[Tensor] = []
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    for number, gradient in enumerate(gradients, start=1):
        bucket.append(gradient)
        if number < len(gradients) and sum(part.nbytes for part in bucket) < BUCKET:
            continue
        flat = torch.cat([part.flatten() for part in bucket])
        dist.all_reduce(flat)
        for part, mean in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            part.copy_(mean.view_as(part) / dist.get_world_size())
        bucket.clear()


def step_flops(args: ScaleBench, batch: int, text: int) -> float:
    """FLOPs of a measured step."""
    size = SIZES[args.size]
    work = flops.stage1_work(size.stage1, size.image_tokens, text, batch)
    return batch * sum(part.trained for part in work.values())


# -------------------------------------------------------------------------------------- ranks


def all_worlds(args: ScaleBench) -> dict[int, Step]:
    """A step on each number of ranks that the memory has room for."""
    steps: dict[int, Step] = {}
    for world in tqdm(sorted(args.worlds), "ranks", disable=None):
        held = max((step.memory for step in steps.values()), default=0.0)
        room = psutil.virtual_memory().available
        if world * held > room:
            print(f"{world} ranks: left out, {world} x {held / GIB:.1f} GiB are more than the "
                  f"{room / GIB:.1f} GiB free here; give less --batches")  # fmt: skip
            continue
        steps[world] = over_ranks(args, world)
    return steps


def over_ranks(args: ScaleBench, world: int) -> Step:
    """A step on `world` gloo ranks: of each measurement the largest over the ranks."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as folder:
        answers = context.SimpleQueue()
        ranks = [
            context.Process(target=_rank, args=(args, rank, world, folder, answers))
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            raise RuntimeError(f"a rank of {world} failed; its traceback stands above")
        found = [answers.get() for _ in ranks]
    return Step(**{name: max(one[name] for one in found) for name in found[0]})


def _rank(args: ScaleBench, rank: int, world: int, folder: str, answers: Any) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    keep_freed_memory()
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    module, inputs = model_and_batch(args, max(args.batches), max(args.texts), seed=rank)
    one_step(module, inputs)  # warm
    with received() as counted:
        module(*inputs)["loss"].backward()
        of_model = counted.bytes
        average(module)
        of_gradients = counted.bytes - of_model
        reference_exchange(inputs[0])
        of_reference = counted.bytes - of_model - of_gradients
    seconds = {"ours": partial(one_step, module, inputs)}
    seconds["reference"] = partial(reference_exchange, inputs[0])
    times = bench.in_turns(seconds, args.rounds, "cpu")
    measured = Step(
        seconds=times["ours"].median,
        model_bytes=of_model,
        gradient_bytes=of_gradients,
        reference_bytes=of_reference,
        reference_seconds=times["reference"].median,
        memory=float(bench.resident("VmHWM")),
    )
    answers.put(vars(measured))
    dist.destroy_process_group()


def rank_rows(steps: dict[int, Step]) -> list[list[str]]:
    """The table of the ranks that were run."""
    rows = [["ranks", "ms/step", "model MiB", "gradient MiB", "ref. MiB", "its ms", "GiB held"]]
    for world, step in steps.items():
        counts = (step.model_bytes, step.gradient_bytes, step.reference_bytes)
        cells = [f"{count / MIB:.3f}" for count in counts]
        spent = f"{1000 * step.seconds:.1f}"
        theirs = f"{1000 * step.reference_seconds:.1f}"
        rows.append([f"{world}", spent, *cells, theirs, f"{step.memory / GIB:.2f}"])
    return rows


# ---------------------------------------------------------------------------------- simulation


def simulate(args: ScaleBench, gpus: int, share: float) -> dict[str, float]:
    """Seconds and bytes of a step on `gpus` GPUs, with our exchange and with the reference's."""
    config, batch = Stage1Config(), args.gpu_batch
    tower = EvaConfig()
    stack = Stack(tower.width, tower.blocks, tower.mlp, tower.width, tower.width)
    encoder = flops.vit_flops(VitSizes(stack, TOKENS, tower.patch), trained=False)
    work = flops.stage1_work(config, TOKENS, TEXT, batch * gpus, gpus)
    compute = batch * (encoder + sum(part.trained for part in work.values()))
    seconds = compute / (args.gpu_peak * 1e12 * share)
    count = model_bytes(config, batch, gpus, tower.width)
    trained = parameters(config)
    gradients = 2 * (gpus - 1) / gpus * STATE * trained * (1 - hidden(args, trained))
    gradients += (gpus - 1) / gpus * WIDTH * trained  # the weights, after the update
    image = batch * TOKENS * tower.width * WIDTH
    theirs = 2 * (gpus - 1) * image + count["features"]  # there, and back as a sum's parts
    bandwidth = 1e9 * (args.nvlink if gpus <= args.node else args.network)
    wait = args.latency * 1e-6 * max(1, gpus - 1).bit_length()
    ours = seconds + (count["features"] + count["negatives"] + gradients) / bandwidth + 7 * wait
    reference = seconds + (theirs + gradients) / bandwidth + 7 * wait
    return {
        "seconds": ours,
        "compute_seconds": seconds,
        "samples_per_s": gpus * batch / ours,
        "efficiency": seconds / ours,
        "model_bytes": count["features"] + count["negatives"],
        "reference_seconds": reference,
        "reference_bytes": theirs,
    }


def hidden(args: ScaleBench, parameters: int) -> float:
    """Part of the gradients' exchange that the backward pass hides: with overlap all but the last
    bucket.
    """
    if args.overlap >= 0:
        return args.overlap
    settings = to_deepspeed(ENGINE, 1, 1, 1)["zero_optimization"]
    if not settings.get("overlap_comm", False):
        return 0.0
    return max(0.0, 1 - settings["reduce_bucket_size"] / parameters)


def model_bytes(config: Stage1Config, batch: int, ranks: int, width: int) -> dict[str, float]:
    """Bytes that a rank receives for ITC's features and texts, and for its negatives' tokens."""
    others = (ranks - 1) * batch
    numbers = (config.qformer.queries + 1) * config.embed * LOGITS
    words = (2 * TEXT + 2) * 8  # ids, mask, image id and the wanted negative, int64
    negatives = batch * (1 - 1 / ranks) * TOKENS * width * WIDTH
    return {"features": others * (numbers + words), "negatives": negatives}


def parameters(config: Stage1Config) -> int:
    """Number of stage 1's parameters."""
    with torch.device("meta"):
        return sum(p.numel() for p in Stage1(config).parameters())


def simulated_rows(found: dict[int, dict[str, float]]) -> list[list[str]]:
    """The table of simulated GPUs."""
    rows = [["GPUs", "ms/step", "samples/s", "of linear", "model MiB", "ref. MiB", "ref. ms/step"]]
    for gpus, made in found.items():
        numbers = (1000 * made["seconds"], made["samples_per_s"])
        sizes = (made["model_bytes"] / MIB, made["reference_bytes"] / MIB)
        rows.append(
            [f"{gpus}", *(f"{n:,.0f}" for n in numbers), f"{made['efficiency']:.1%}",
             *(f"{n:,.0f}" for n in sizes), f"{1000 * made['reference_seconds']:,.0f}"]
        )  # fmt: skip
    return rows


def assumptions(args: ScaleBench, share: float) -> str:
    """The simulation's assumptions, in a line."""
    part = hidden(args, parameters(Stage1Config()))
    return (
        f"simulated: {args.gpu_batch} samples a GPU at {share:.1%} of {args.gpu_peak:g} TFLOP/s "
        f"({'given' if args.share else 'the share measured here'}); {args.nvlink:g} GB/s within "
        f"{args.node} GPUs, {args.network:g} GB/s beyond; 7 collectives at {args.latency:g} us a "
        f"doubling; {part:.0%} of the gradients' exchange hidden"
    )


def _row(name: str, seconds: float, each: float) -> list[str]:
    return [name, f"{1000 * seconds:.1f}", f"{1000 * each:.2f}"]
