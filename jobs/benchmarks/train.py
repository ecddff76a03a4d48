"""Training steps beside the reference's algorithm, Hugging Face's BLIP-2 and the matrix ceiling.

    python jobs/benchmark.py train                                  # Q-Former of BERT-base's size
    python jobs/benchmark.py train --cases stage1 --rounds 7
    python jobs/benchmark.py train --dtype bf16
    python jobs/benchmark.py train --size full --device cuda --dtype bf16 --batch 64 --compile

A step is forward and backward. Stage 1 is compared with the reference's four Q-Former passes
(``jobs.benchmarks.reference``), once on texts of full length and once on texts as long as COCO's
captions; stage 2 with Hugging Face's ``Blip2ForConditionalGeneration``. The size ``base`` is given
image tokens (257 of width 1408) and has language models of OPT-125M's and FlanT5-base's sizes;
``full`` starts from pixels, with ViT-g, OPT-2.7B, FlanT5-XL and FlanT5-XXL. Weights are random.

All contenders of a case have the same weights and batch, and the run compares their losses without
dropout. They take turns round by round; ratios are medians over rounds. On CPU in fp32 our model
runs twice: as it is, and with the library of matrix products that torch gives the others. The
memory of each is measured in a process of its own: the peak of its first step over what the
process held before.
"""

import ctypes
import gc
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
import tyro
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from cluster.malloc import keep_freed_memory
from jobs.benchmarks import measure as bench
from jobs.benchmarks.stage1_contenders import stage1_case
from jobs.benchmarks.stage2_contenders import stage2_case
from jobs.benchmarks.train_contenders import SIZES, Case, Contender, caption_lengths
from modeling import losses
from modeling.precision import DTYPES

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
EQUAL = {"fp32": 1e-4, "bf16": 3e-2}


@dataclass(frozen=True)
class TrainBench:
    """Options of the training benchmark.

    Attributes:
        size: models: ``base`` and ``full`` as above; ``tiny`` for tests.
        device: torch's name of the device.
        dtype: number format of the models.
        cases: names with commas between them; ``all`` is stage1, stage1-mix, and stage 2 with each
            language model of the size.
        batch: samples of a step.
        text: tokens of a full-length text.
        rounds: number of rounds; the contenders take turns.
        peer: whether the other implementations run too.
        memory: whether peaks of memory are measured.
        profile: whether the operators that take most of our step are named.
        compile: whether the frozen encoder is compiled (``full``).
        only: contender whose peak of memory is printed, and nothing else; with one case. The
            benchmark calls itself so, in a process of its own.
    """

    size: Literal["tiny", "base", "full"] = "base"
    device: str = "cpu"
    dtype: Literal["fp32", "bf16"] = "fp32"
    cases: str = "all"
    batch: int = 8
    text: int = 32
    rounds: int = 5
    peer: bool = True
    memory: bool = True
    profile: bool = False
    compile: bool = False
    only: str = ""


def main(arguments: Sequence[str]) -> int:
    """Measure, check, report."""
    args = tyro.cli(TrainBench, args=arguments, description=__doc__)
    keep_freed_memory()
    if args.only:
        print(peak_of_a_step(args))
        return 0
    ceiling = bench.matmul_peak(args.device, DTYPES[args.dtype])
    rows = [["", "samples/s", "ratio", "GFLOP/sample", "of peak", "peak MiB", "loss"]]
    found: dict[str, Any] = {}
    cases = {name: make_case(args, name) for name in case_names(args)}
    runs = sum(len(case.make) * (args.rounds + 1 + args.memory) for case in cases.values())
    print(
        f"{len(cases)} cases ({', '.join(cases)}); in each, every contender makes a step to warm, "
        f"{args.rounds} that are timed in turn"
        + (", and one in a process of its own for its memory" if args.memory else ""),
        flush=True,
    )
    with bench.progress(runs, "train") as bar:
        for name, case in cases.items():
            found[name] = measure(args, name, case, ceiling, bar)
            rows += found[name].pop("rows")
    print(f"matrix products: {ceiling / 1e12:.3f} TFLOP/s")
    equal = all(case["loss_difference"] <= EQUAL[args.dtype] for case in found.values())
    print(f"losses equal to {EQUAL[args.dtype]:g}: {equal}")
    bench.report(
        rows,
        {
            "benchmark": "train",
            **bench.machine(args.device),
            **args.__dict__,
            "peak_tflops": round(ceiling / 1e12, 4),
            "cases": found,
        },
    )
    return 0 if equal else 1


def case_names(args: TrainBench) -> list[str]:
    """Names of the cases that ``--cases`` asks for.

    Raises:
        ValueError: there is no such case; the message names those there are.
    """
    known = ["stage1", "stage1-mix", *SIZES[args.size].languages]
    asked = known if args.cases == "all" else args.cases.split(",")
    for name in asked:
        if name not in known:
            raise ValueError(f"--cases {name!r}: give all, or some of {', '.join(known)}")
    return asked


def make_case(args: TrainBench, name: str) -> Case:
    """A case by name; without the other implementation where ``--no-peer`` says so."""
    full = [args.text] * args.batch
    if name == "stage1":
        case = stage1_case(args, f"stage 1, {args.text} tokens", full, args.text)
    elif name == "stage1-mix":
        mix = [min(n, args.text) for n in caption_lengths(args.batch)]
        case = stage1_case(args, "stage 1, captions' mix", mix, args.text)
    else:
        case = stage2_case(args, name, full)
    if not args.peer:
        case.make.pop(list(case.make)[-1])
    return case


def measure(args: TrainBench, name: str, case: Case, ceiling: float, bar: Any) -> dict[str, Any]:
    """Measure one case: losses, times in turns, FLOPs, memory, and its rows of the table.

    Args:
        bar: progress bar that counts one for each step.
    """
    bar.set_description(name)
    contenders = {who: make() for who, make in case.make.items()}
    values = {who: loss_without_dropout(made) for who, made in contenders.items()}
    gflop = {w: bench.flops(c.step) / case.batch / 1e9 for w, c in contenders.items()}  # warms too
    steps = {who: made.step for who, made in contenders.items()}
    bar.update(len(contenders))
    times = bench.in_turns(steps, args.rounds, args.device, bar)
    operators = top_operators(args, contenders["ours"]) if args.profile else {}
    del contenders, steps
    gc.collect()
    memory = {}
    for who in case.make if args.memory else ():
        bar.set_postfix_str(f"memory: {who}")
        memory[who] = peak_memory(args, name, who)
        bar.update()
    slowest = times[list(times)[-1]].seconds
    result: dict[str, Any] = {
        "samples_per_s": {w: round(case.batch / t.median, 3) for w, t in times.items()},
        "ratio": {
            who: round(median_ratio(slowest, timed.seconds), 3) for who, timed in times.items()
        },
        "gflop_per_sample": {who: round(count, 1) for who, count in gflop.items()},
        "gflop_by_formula": round(case.gflop, 1),
        "of_peak": {
            who: round(gflop[who] * 1e9 * case.batch / timed.median / ceiling, 4)
            for who, timed in times.items()
        },
        "peak_mib": {who: round(peak / MIB) for who, peak in memory.items()},
        "loss": values,
        "loss_difference": max(values.values()) - min(values.values()),
        "operators": operators,
    }
    for operator, share in operators.items():
        print(f"{case.name}: {share:6.1%}  {operator}")
    result["rows"] = [[case.name, *[""] * 6], *(_row(result, who) for who in times)]
    return result


def _row(result: dict[str, Any], who: str) -> list[str]:
    peak = result["peak_mib"].get(who)
    return [
        f"  {who}",
        f"{result['samples_per_s'][who]:.2f}",
        f"{result['ratio'][who]:.2f} x",
        f"{result['gflop_per_sample'][who]:.1f}",
        f"{result['of_peak'][who]:.1%}",
        "" if peak is None else f"{peak:,}",
        f"{result['loss'][who]:.5f}",
    ]


def median_ratio(theirs: Sequence[float], mine: Sequence[float]) -> float:
    """The median over rounds of another's time by mine in the same round."""
    return statistics.median(a / b for a, b in zip(theirs, mine, strict=True))


# ----------------------------------------------------------------------------------- losses


@torch.no_grad()
def loss_without_dropout(made: Contender) -> float:
    """The loss in eval mode, with the most likely negatives instead of drawn ones."""
    made.module.eval()
    with made.around(), hardest_negatives():
        value = float(made.losses()["loss"])
    made.module.train()
    return value


@contextmanager
def hardest_negatives() -> Iterator[None]:
    """Inside, negatives are the most likely ones, so that all contenders have the same."""

    def most_likely(weights: Tensor, *_: int) -> Tensor:
        return weights.argmax(-1, keepdim=True)

    with (
        mock.patch.object(torch, "multinomial", most_likely),
        mock.patch.object(losses, "draw_by_race", lambda weights: weights.argmax(1)),
    ):
        yield


# ----------------------------------------------------------------------------------- memory


def peak_memory(args: TrainBench, case: str, who: str) -> float:
    """Peak bytes of a first step over those held before it, measured in a new process."""
    if args.device.startswith("cuda"):
        return peak_of_a_step(_alone(args, case, who))
    options = [f"--{key}={value}" for key, value in vars(_alone(args, case, who)).items()
               if not isinstance(value, bool)]  # fmt: skip
    command = [sys.executable, str(ROOT / "jobs" / "benchmark.py"), "train", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {who!r} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def _alone(args: TrainBench, case: str, who: str) -> TrainBench:
    return TrainBench(**{**vars(args), "cases": case, "only": who})


def peak_of_a_step(args: TrainBench) -> float:
    """Peak bytes of a step over those held before it: weights, batch, libraries."""
    made = make_case(args, case_names(args)[0]).make[args.only]()
    gc.collect()
    if args.device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        made.step()
        return float(torch.cuda.max_memory_allocated() - before)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = bench.resident("VmRSS")
    made.step()
    return float(bench.resident("VmHWM") - before)


# ---------------------------------------------------------------------------------- profile


def top_operators(args: TrainBench, made: Contender, count: int = 8) -> dict[str, float]:
    """The operators of one step by their share of its time on the device."""
    cuda = args.device.startswith("cuda")
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=kinds) as recorded:
        made.step()
        bench.settle(args.device)
    name = "self_device_time_total" if cuda else "self_cpu_time_total"
    spent = {event.key: getattr(event, name) for event in recorded.key_averages()}
    total = sum(spent.values()) or 1.0
    largest = sorted(spent, key=spent.__getitem__, reverse=True)[:count]
    return {key: round(spent[key] / total, 4) for key in largest}
