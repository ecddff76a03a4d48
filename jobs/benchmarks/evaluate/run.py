"""Evaluation's speed: answers, captions and re-ranking, beside Hugging Face and pair by pair.

    python jobs/benchmark.py evaluate                              # small random models, on CPU
    python jobs/benchmark.py evaluate --size base --cases vqa --images 4
    python jobs/benchmark.py evaluate --checkpoint runs/demo/train/t5 --cases vqa
    python jobs/benchmark.py evaluate --cases rerank --retrieval-images 1000 --k 128

Contenders have the same weights, which ``jobs/convert.py``'s writer exports, and the same images,
prompts and beams, in fp32. They take turns. Texts are compared and counted, and scores of pairs
too. Sizes: ``tinyworld`` has the zoo's language models, and the Q-Former and image sizes of
TinyWorld's recipes; ``small`` language models of 6 layers of width 512; ``base`` a ViT-B, a
Q-Former of BERT-base's size, and an OPT-125M or FlanT5-base. ``generation`` and ``reranking``
beside this file describe the contenders.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from jobs.benchmarks import measure as bench
from jobs.benchmarks.evaluate import generation, reranking

CASES = ("vqa", "caption", "rerank")
EQUAL = 0.95
"""Least share of equal texts. Random weights have near ties, which an input changed by 1e-7 turns;
the cross-check of trained checkpoints (``make crosscheck``) asks for more."""
CLOSE = 1e-4
TIMERS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class EvaluateBench:
    """Options of the evaluation benchmark.

    Attributes:
        size: models of random weights, as above; ``tiny`` for tests.
        checkpoint: trained stage-2 checkpoint that answers and captions instead of random weights.
        device: torch's name of the device.
        cases: names with commas between them.
        languages: language models with commas between them.
        images: number of images that are asked about and captioned.
        questions: number of questions of an image; VQAv2 has 5.
        beams: number of beams; 1: greedy search.
        batch: images, prompts or texts in a forward pass.
        retrieval_images: number of images among which is searched.
        captions: captions of each of them.
        k: candidates of an image and of a text that ITM ranks again.
        sample: pairs that are scored one at a time.
        rounds: number of rounds; the contenders take turns.
        clock: clock of the measurement. wall: time that passes. cpu: CPU seconds of this process,
            for a machine with other work on it.
    """

    size: Literal["tiny", "tinyworld", "small", "base"] = "small"
    checkpoint: Path | None = None
    device: str = "cpu"
    cases: str = ",".join(CASES)
    languages: str = "opt,t5"
    images: int = 8
    questions: int = 5
    beams: int = 5
    batch: int = 32
    retrieval_images: int = 40
    captions: int = 5
    k: int = 8
    sample: int = 20
    rounds: int = 2
    clock: Literal["wall", "cpu"] = "wall"

    def __post_init__(self) -> None:
        chosen = {"cases": CASES, "languages": ("opt", "t5")}
        for option, known in chosen.items():
            for name in getattr(self, option).split(","):
                if name not in known:
                    raise ValueError(f"--{option} {name!r}: give some of {', '.join(known)}")


def main(arguments: Sequence[str]) -> int:
    """Measure, check, report."""
    args = tyro.cli(EvaluateBench, args=arguments, description=__doc__)
    ceiling = bench.matmul_peak(args.device, torch.float32, timer=TIMERS[args.clock])
    rows = [["", "per s", "ratio", "of ceiling", "best s", "median s", "equal"]]
    found: dict[str, Any] = {}
    for what in args.cases.split(","):
        if what == "rerank":
            with tempfile.TemporaryDirectory() as folder:
                found["rerank"] = measure_reranking(args, Path(folder), ceiling)
            rows += reranking_rows(args, found["rerank"])
            continue
        families = [""] if args.checkpoint else args.languages.split(",")
        for family in families:
            with tempfile.TemporaryDirectory() as folder:
                case = generation.generation_case(args, what, family, Path(folder))
                found[case.title] = measure_generation(args, case)
            rows += generation_rows(case, found[case.title])
    print(f"matrix products: {ceiling / 1e12:.3f} TFLOP/s; seconds by the {args.clock} clock")
    good = all(case["good"] for case in found.values())
    print(f"at least {EQUAL:.0%} of the texts equal, scores equal to {CLOSE:g}: {good}")
    options = {
        name: str(value) if name == "checkpoint" else value for name, value in vars(args).items()
    }
    record = {"benchmark": "evaluate", **bench.machine(args.device), **options}
    bench.report(rows, {**record, "peak_tflops": round(ceiling / 1e12, 4), "cases": found})
    return 0 if good else 1


def measure_generation(args: EvaluateBench, case: generation.Case) -> dict[str, Any]:
    """Seconds of each contender, in turns, and the number of texts that equal ours."""
    texts: dict[str, list[str]] = {}

    def keeping(who: str) -> Any:
        return lambda: texts.__setitem__(who, case.work[who]())

    times = _in_turns(args, case.title, {who: keeping(who) for who in case.work})
    ours = texts[generation.OURS]
    equal = {
        who: sum(mine == other for mine, other in zip(ours, said, strict=True))
        for who, said in texts.items()
    }
    return {
        "unit": case.unit,
        "count": case.count,
        "different_texts": len(set(ours)),
        "seconds": _all_seconds(times),
        "per_s": {who: round(case.count / timed.best, 4) for who, timed in times.items()},
        "ratio": _ratios(times, dict.fromkeys(times, 1.0), generation.OURS),
        "equal": equal,
        "good": equal[generation.SINGLE] >= EQUAL * case.count,
    }


def measure_reranking(args: EvaluateBench, folder: Path, ceiling: float) -> dict[str, Any]:
    """Seconds of each contender, in turns, scaled up to all pairs; and the difference of scores."""
    case = reranking.reranking_case(args, folder)
    times = _in_turns(args, "rerank", case.work)
    scale = dict.fromkeys(times, case.pairs / case.sample) | {reranking.OURS: 1.0}
    difference = case.difference()
    return {
        "pairs": case.pairs,
        "sample": case.sample,
        "seconds": _all_seconds(times),
        "per_s": {w: round(case.pairs / (t.best * scale[w]), 3) for w, t in times.items()},
        "ratio": _ratios(times, scale, reranking.OURS),
        "ceiling_per_s": round(ceiling / case.flops, 3),
        "gflop_per_pair": round(case.flops / 1e9, 4),
        "difference": difference,
        "good": difference <= CLOSE,
    }


def _in_turns(args: EvaluateBench, title: str, work: dict[str, Any]) -> dict[str, bench.Timed]:
    with bench.progress(len(work) * args.rounds, title) as bar:
        return bench.in_turns(work, args.rounds, args.device, bar, TIMERS[args.clock])


def _all_seconds(times: dict[str, bench.Timed]) -> dict[str, list[float]]:
    return {who: [round(spent, 3) for spent in timed.seconds] for who, timed in times.items()}


def _ratios(times: dict[str, bench.Timed], scale: dict[str, float], ours: str) -> dict[str, float]:
    """How many times as long as ours each other contender takes."""
    mine = times[ours].best * scale[ours]
    return {w: round(t.best * scale[w] / mine, 2) for w, t in times.items() if w != ours}


def generation_rows(case: generation.Case, found: dict[str, Any]) -> list[list[str]]:
    """The rows of one case, a contender each."""
    top = found["per_s"][generation.CEILING]
    rows = []
    for who, speed in found["per_s"].items():
        spent = bench.Timed(tuple(found["seconds"][who]))
        ratio = found["ratio"].get(who)
        rows.append([
            f"{case.title}, {who}", f"{speed:.2f} {case.unit}", f"{ratio:.2f}" if ratio else "",
            f"{speed / top:.0%}", f"{spent.best:.2f}", f"{spent.median:.2f}",
            f"{found['equal'][who]} of {case.count}",
        ])  # fmt: skip
    return rows


def reranking_rows(args: EvaluateBench, found: dict[str, Any]) -> list[list[str]]:
    """The rows of re-ranking, a contender each."""
    texts = args.retrieval_images * args.captions
    rows = []
    for who, speed in found["per_s"].items():
        spent = bench.Timed(tuple(found["seconds"][who]))
        ratio = found["ratio"].get(who)
        title = f"{args.retrieval_images} images x {texts} captions, k {args.k}, {who}"
        equal = "" if who == reranking.OURS else f"to {found['difference']:.0e}"
        rows.append([
            title, f"{speed:.2f} pairs", f"{ratio:.2f}" if ratio else "",
            f"{speed / found['ceiling_per_s']:.0%}", f"{spent.best:.2f}", f"{spent.median:.2f}",
            equal,
        ])  # fmt: skip
    return rows
