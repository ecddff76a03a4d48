"""What `benchmark.py gpu` measures: each part is a function that returns one record of numbers."""

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from cluster.logfiles import records_so_far
from jobs.benchmarks import capfilt as bench_capfilt
from jobs.benchmarks import measure as bench
from jobs.benchmarks.gpu import cases
from jobs.models.encoder_settings import pixels_of
from jobs.training import budget, hardware
from jobs.training.hardware import GIB
from jobs.training.memory import plan_memory
from jobs.training.sketch import sketch

TOP = 8
WARM, EVERY, INTERVALS = {"full": 4, "tiny": 1}, {"full": 4, "tiny": 1}, {"full": 3, "tiny": 2}
"""Steps before the first that counts, steps between two log lines, and intervals that count."""
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


class LeftOut(Exception):
    """A part that this device or this run has no room for; the message says why."""


def ceiling(args: Any, device: torch.device) -> dict[str, Any]:
    """FLOP/s of a large product and bytes/s of a large copy: what nothing here can exceed."""
    size = 256 if args.size == "tiny" else 8192
    products = {
        name: round(bench.matmul_peak(device.type, dtype, size) / 1e12, 3)
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
    }
    source = torch.empty(size * size * 16, dtype=torch.bfloat16, device=device).normal_()
    target = torch.empty_like(source)
    seconds = min(bench.clock(lambda: target.copy_(source), device.type) for _ in range(5))
    moved = 2 * source.numel() * source.element_size()
    gpu = hardware.this_gpu()
    return {
        "product_tflops": products,
        "copy_tb_per_s": round(moved / seconds / 1e12, 3),
        "data_sheet_tflops": gpu.tflops if gpu else None,
    }


# -------------------------------------------------------------------------------- training


def training(args: Any, device: torch.device, part: str, peak: float) -> dict[str, Any]:
    """Steps of the project's own loop: speed, MFU by part, memory and kernels.

    Args:
        part: one of ``cases.RECIPES``.
        peak: FLOP/s that were reached by a large product of the recipe's format.

    Raises:
        LeftOut: the dry run says that it does not fit.
    """
    batch = args.batch or cases.share_of(args.size, part)
    recipe = cases.settled_recipe(args.size, part, batch, device)
    sketched = sketch(recipe)
    planned = plan_memory(recipe, sketched, 1, batch).total
    room, on_cpu = hardware.room(1)
    if planned > room and not on_cpu:
        raise LeftOut(f"memory: {planned / GIB:.0f} GiB by the dry run, {room / GIB:.0f} are there")
    warm, every = WARM[args.size], EVERY[args.size]
    counted = every * INTERVALS[args.size]
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        run = cases.make_training(recipe, device, Path(folder), every=every, steps=1000)
        made_in = time.perf_counter() - begun
        run.steps(warm)
        first = memory_held(device)
        run.steps(counted)
        held = memory_held(device)
        log = [
            record for record in records_so_far(run.folder / "log.jsonl") if record["step"] > warm
        ]
        speeds = [record["images_per_s"] for record in log]
        seconds = batch / statistics.median(speeds)
        work = budget.sample_flops(recipe, sketched, 1)
        parts = seconds_by_part(run, device)
        kernels = profiled(lambda: run.steps(2), device, 2 * seconds, told(args, part))
        run.close()
    return {
        "recipe": recipe.name,
        "batch": batch,
        "precision": recipe.run.zero.precision,
        "compile": recipe.encoder.compile,
        "engine": f"DeepSpeed ZeRO-{recipe.run.zero.stage}",
        "images_per_s": round(statistics.median(speeds), 2),
        "images_per_s_of_intervals": speeds,
        "step_ms": round(1e3 * seconds, 2),
        "loss": log[-1]["loss"],
        "made_in_s": round(made_in, 1),
        "gflop_per_sample": {name: round(value / 1e9, 1) for name, value in work.items()},
        "mfu": mfu(sum(work.values()) * batch, seconds, peak),
        "parts": by_part(work, parts, seconds, batch, peak),
        "memory_gib": {"planned": round(planned / GIB, 2), "after_warm_up": first, **held},
        **kernels,
    }


def told(args: Any, part: str) -> Path:
    """Where a part's profile is written."""
    where: Path = args.out / f"profile-{part}.txt"
    return where


def mfu(work: float, seconds: float, peak: float) -> dict[str, float]:
    """The share of the data sheet's peak and of a measured product's that ``work`` FLOPs reach."""
    gpu = hardware.this_gpu()
    shares = {"of_product": round(work / seconds / peak, 4)}
    if gpu:
        shares["of_data_sheet"] = round(work / seconds / gpu.tflops / 1e12, 4)
    return shares


def seconds_by_part(run: cases.Training, device: torch.device) -> dict[str, float]:
    """Seconds of the frozen encoder and of the language model (forward and backward) alone."""
    batch, recipe, made = run.batches[0], run.recipe, run.made
    found: dict[str, float] = {}
    encoder = made.encoder
    assert encoder is not None
    images = batch.pixels_B3HW(device, pixels_of(recipe.encoder))
    with torch.no_grad():
        found["encoder"] = median_seconds(lambda: encoder(images), device)
    if made.language is not None:
        model, width = recipe.model, made.language.width
        prompts = torch.randn(
            len(batch.texts), model.qformer.queries, width, device=device, dtype=made.language.dtype
        )
        prompts.requires_grad_()

        def speak() -> None:
            made.language.loss(prompts, batch.texts, batch.draws_B2[:, 0]).backward()

        found["language model"] = median_seconds(speak, device)
    return found


def by_part(
    work: Mapping[str, float],
    seconds: Mapping[str, float],
    step: float,
    batch: int,
    peak: float,
) -> dict[str, dict[str, float]]:
    """Milliseconds and share of the measured product of each part; what the frozen models leave of
    a step is the Q-Former's, with the update.
    """
    rest = {name: value for name, value in work.items() if name not in seconds}
    times = {**seconds, "Q-Former and update": max(1e-9, step - sum(seconds.values()))}
    counts = {**{name: work.get(name, 0.0) for name in seconds}}
    counts["Q-Former and update"] = sum(rest.values())
    return {
        name: {
            "ms": round(1e3 * spent, 2),
            "of_product": round(counts[name] * batch / spent / peak, 4),
        }
        for name, spent in times.items()
    }


def median_seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The median of several runs, after some to warm up; events time a GPU."""
    cuda = device.type == "cuda"
    warm, repeats = (5, 10) if cuda else (1, 3)
    for _ in range(warm):
        work()
    if not cuda:
        return statistics.median(bench.clock(work, device.type) for _ in range(repeats))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(
        1e-3 * one.elapsed_time(next_one) for one, next_one in itertools.pairwise(marks)
    )


def memory_held(device: torch.device) -> dict[str, float]:
    """GiB at most so far: in tensors, and taken from the device by torch."""
    if device.type != "cuda":
        return {"peak": round(bench.resident("VmHWM") / GIB, 2)}
    free, total = torch.cuda.mem_get_info()
    return {
        "peak": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "reserved": round(torch.cuda.max_memory_reserved() / GIB, 2),
        "device_used": round((total - free) / GIB, 2),
    }


def profiled(
    work: Callable[[], Any], device: torch.device, seconds: float, told: Path
) -> dict[str, Any]:
    """The kernels of some work by their share of the device's time, how busy the device is with it,
    and how often the host waits for it. On a CPU: operators instead of kernels.

    Args:
        seconds: duration of the work without a profiler.
        told: a text file that gets the profiler's tables.
    """
    cuda = device.type == "cuda"
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=kinds) as recorded:
        work()
        bench.settle(device.type)
    events = recorded.key_averages()
    if not cuda:
        spent = {event.key: event.self_cpu_time_total for event in events}
    else:
        spent = {
            event.key: event.self_device_time_total
            for event in events
            if event.device_type == DeviceType.CUDA
        }
    total = sum(spent.values()) or 1.0
    largest = sorted(spent, key=spent.__getitem__, reverse=True)[:TOP]
    orders = ["self_cuda_time_total"] * cuda + ["self_cpu_time_total"]
    tables = [events.table(sort_by=order, row_limit=60) for order in orders]
    told.write_text("\n".join(tables))
    launches = {event.key: event.count for event in events if "Launch" in event.key}
    return {
        "kernels": {key[:90]: round(spent[key] / total, 4) for key in largest},
        "device_ms": round(1e-3 * total, 2) if cuda else None,
        "device_busy": round(1e-6 * total / seconds, 4) if cuda else None,
        "launches": sum(launches.values()),
        "waits": {event.key: event.count for event in events if event.key in WAITS},
    }


# --------------------------------------------------------------------------------- CapFilt


def capfilt(args: Any, device: torch.device, peak: float) -> dict[str, Any]:
    """Captions and scores by BLIP-large and CLIP ViT-L, beside the plain Hugging Face loop."""
    tiny = args.size == "tiny"
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # as in its own job; training's turns it off
    sizes = bench_capfilt.CapFiltBench(
        size="small" if tiny else "full",
        device=device.type,
        dtype="fp32" if tiny else "bf16",
        images=1 if tiny else 256,
        batch=1 if tiny else 64,
        captions=2 if tiny else 10,
        tokens=3 if tiny else 20,
        rounds=1,
        peer=not tiny,
    )
    captioner, scorer, plain = bench_capfilt.contenders(sizes)
    large, small = bench_capfilt.random_images(sizes)
    batches = list(zip(large.split(sizes.batch), small.split(sizes.batch), strict=True))
    ours = bench_capfilt.Ours(captioner, scorer)
    work = bench_capfilt.count_flops(ours, batches[0])
    ours.run(batches[:1] * 2)  # a step is recorded when it is met for the second time
    rounds = [bench.clock(lambda: ours.run(batches), device.type) for _ in range(1 if tiny else 3)]
    seconds = min(rounds)
    stages = {name: round(spent, 4) for name, spent in ours.seconds.items()}
    found: dict[str, Any] = {
        "batch": sizes.batch,
        "captions": sizes.captions,
        "tokens": sizes.tokens,
        "precision": sizes.dtype,
        "images_per_s": round(sizes.images / seconds, 2),
        "images_per_s_of_rounds": [round(sizes.images / spent, 2) for spent in rounds],
        "new_text_shape_ms": new_shape_ms(scorer, ours.captions[0], device),
        "seconds_by_stage": stages,
        "gflop_per_image": round(work / 1e9, 1),
        "mfu": mfu(work * sizes.images, seconds, peak),
        "graphs": captioner.steps.replays,
        "memory_gib": memory_held(device),
        **profiled(
            lambda: ours.run(batches[:1]),
            device,
            seconds * sizes.batch / sizes.images,
            told(args, "capfilt"),
        ),
    }
    if sizes.peer:
        plain(batches[0])
        theirs = bench.clock(lambda: plain(batches[0]), device.type)
        found["peer"] = {
            "name": "plain Hugging Face loop",
            "images_per_s": round(sizes.batch / theirs, 2),
            "ratio": round(theirs / sizes.batch * sizes.images / seconds, 2),
        }
    return found


def new_shape_ms(scorer: Any, texts: list[str], device: torch.device) -> float:
    """What texts cost more in a number that is met for the first time: attention kernels may be
    planned anew for every shape.
    """
    some = [f"{text} w{number}" for number, text in enumerate(texts * 8)][:37]
    first, again = (bench.clock(lambda: scorer.text_embeds(some), device.type) for _ in range(2))
    return round(1e3 * (first - again), 1)
