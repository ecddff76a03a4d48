"""The whole pipeline on the embedded data set: noisy pairs in, a model and a report out.

    python jobs/tinyworld.py --out runs/demo        # what `make demo` runs

Every stage is a command that a user would type, printed before it runs, so this file is also the
tour of the project. An interrupted tour goes on where it stopped; a finished one starts afresh.
"""

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

import tyro

from evaluation.audit import audit_capfilt
from jobs.cli import run
from jobs.tour.estimate import Work, expected_seconds, measure
from jobs.tour.results import FAMILIES, print_table, read_results, write_page
from jobs.tour.stages import Tour
from pipeline.tinyworld.benchmarks import write_benchmarks
from pipeline.tinyworld.write import load_truth, write_coco, write_eval, write_web

_BENCHMARK_IMAGES = 64  # of each benchmark's small copy, for jobs/evaluate.py --suite tinyworld


@dataclass(frozen=True)
class TourArgs:
    """Sizes of the tour; the defaults are the demo's."""

    out: Path = Path("runs/demo")
    """folder of everything that the tour makes"""
    seed: int = 0
    """seed of the data"""
    web: int = 4608
    """number of noisy image-text pairs for CapFilt"""
    human: int = 3072
    """number of pairs with human captions, which CapFilt passes through"""
    test: int = 256
    """number of test images, each of another scene"""
    stage1_steps: int = 100
    """training steps of stage 1; every step has 64 samples"""
    t5_steps: int = 600
    """training steps of stage 2 with the T5, which learns more slowly"""
    opt_steps: int = 200
    """training steps of stage 2 with the OPT"""
    ranks: int = 2
    """data-parallel processes of the training stages, one core each"""


def announce(args: TourArgs) -> None:
    """Print how long the tour will take here, and the number format that it will compute in."""
    work = Work(
        images=args.web,
        stage1=64 * args.stage1_steps,
        t5=64 * args.t5_steps,
        opt=64 * args.opt_steps,
        tests=args.test,
        ranks=args.ranks,
    )
    dtype, trained, fp32 = measure()
    minutes = expected_seconds(work, trained, fp32) / 60
    why = "multiplies bf16 in hardware" if dtype == "bf16" else "has no bf16 instructions"
    print(
        f"This takes about {minutes:.0f} minutes here: a trial made {trained:.0f} samples/s on one "
        f"core in {dtype}, since this CPU {why}. The first captions can be looked at within two.",
        flush=True,
    )


def make_data(args: TourArgs, data: Path) -> None:
    """Write the noisy web pairs, the human-captioned set and the evaluation sets, from the seed."""
    if (data / "complete").exists():
        print("the data is there already")
        return
    write_web(data / "web", args.web, seed=args.seed, shard_size=512)
    write_coco(data / "coco", args.human, seed=args.seed)
    write_eval(data / "eval", val=min(256, args.test), test=args.test, out=256, seed=args.seed)
    write_benchmarks(data / "eval", _BENCHMARK_IMAGES, seed=args.seed)
    (data / "complete").touch()


def capfilt(tour: Tour, data: Path, out: Path) -> None:
    """Caption, rank and filter the web pairs; pass the human-captioned ones through unchanged."""
    common = ["jobs/capfilt.py", "--recipe", "tinyworld"]
    annotations, images = data / "coco/annotations/captions_train.json", data / "coco/images/train"
    tour.command(*common, "--input", data / "web", "--output", out / "web")
    tour.command(*common, "--input", annotations, "--images", images, "--output", out / "coco")


def train(tour: Tour, stage: int, recipe: str, steps: int, ranks: int, *more: object) -> None:
    """Launch one training stage with DeepSpeed."""
    capfilt_out = tour.out / "capfilt"
    tour.command(
        "--log_level",
        "warning",
        "--num_accelerators",
        ranks,
        f"jobs/stage{stage}.py",
        "--recipe",
        recipe,
        "--data",
        f"{capfilt_out / 'web'},{capfilt_out / 'coco'}",
        "--steps",
        steps,
        *more,
        launcher="deepspeed",
    )


def evaluation(tour: Tour, name: str, *tasks: str) -> list[object]:
    """Command that scores a run's checkpoint on the test split.

    Args:
        tour: the tour, for its folder.
        name: name of the run.
        tasks: tasks to score.
    """
    return [
        "jobs/evaluate.py",
        "--checkpoint",
        tour.out / "train" / name,
        "--data",
        tour.out / "data" / "eval",
        "--split",
        "test",
        "--retrieval-captions",
        1,
        "--k",
        16,
        "--rerank",
        "odds",
        "--out",
        tour.out / "eval" / name,
        "--tasks",
        *tasks,
    ]


def evaluate(tour: Tour) -> dict[str, Any]:
    """Score the three checkpoints side by side; returns the scores by task and family."""
    tour.commands(
        evaluation(tour, "stage1", "retrieval"),
        *(evaluation(tour, family, "caption", "vqa") for family in FAMILIES),
    )
    scored = {family: read_results(tour.out / "eval" / family) for family in FAMILIES}
    found: dict[str, Any] = {
        "retrieval": read_results(tour.out / "eval" / "stage1")["retrieval"],
        "caption": {family: scored[family]["caption"] for family in FAMILIES},
        "vqa": {family: scored[family]["vqa"] for family in FAMILIES},
    }
    shuffled = [found["caption"][family]["shuffled_cider"] for family in FAMILIES]
    found["caption"]["shuffled"] = {"cider": max(shuffled)}
    return found


def prepare(args: TourArgs) -> Path:
    """Make or find the folder of the tour; a finished tour in it is removed.

    Raises:
        ValueError: the folder holds a tour of other sizes.
    """
    out = args.out.resolve()
    if (out / "results.json").exists():
        print(f"{args.out} holds a finished tour: starting afresh")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    begun = out / "tour.json"
    mine = json.dumps(asdict(args) | {"out": str(args.out)}, indent=1)
    if begun.exists() and begun.read_text() != mine:
        raise ValueError(f"--out {args.out} holds a tour of other sizes: name another folder")
    begun.write_text(mine)
    return out


def tour(args: TourArgs) -> int:
    """Run every stage, then print the table and write ``results.json`` and ``report.html``."""
    out = prepare(args)
    announce(args)
    t = Tour(out, stages=7)
    results: dict[str, Any] = {}
    data, capfilt_out, runs = out / "data", out / "capfilt", out / "train"

    t.begin("data", f"{args.web} noisy web pairs, {args.human} human pairs, the evaluation sets")
    make_data(args, data)
    t.end("data")

    t.begin("capfilt", "10 captions an image, ranked with the web caption, the best two kept")
    capfilt(t, data, capfilt_out)
    truth = load_truth(data / "web")
    results["capfilt"] = audit_capfilt(str(capfilt_out / "web"), truth)
    t.end("capfilt")

    t.begin("stage1", "the Q-Former learns to see: ITC + ITM + ITG on a frozen encoder")
    train(t, 1, "tinyworld", args.stage1_steps, args.ranks, "--out", runs / "stage1")
    t.end("stage1")
    for family in FAMILIES:
        t.begin(f"stage2_{family}", "its queries become soft prompts of a frozen language model")
        more = ("--init", runs / "stage1", "--out", runs / family)
        steps = {"t5": args.t5_steps, "opt": args.opt_steps}[family]
        train(t, 2, f"tinyworld-{family}", steps, args.ranks, *more)
        t.end(f"stage2_{family}")

    t.begin("evaluation", f"{args.test} test images of scenes that no model was ever shown")
    results |= evaluate(t)
    t.end("evaluation")

    t.begin("report", "one page to look at")
    results["seconds"] = t.seconds
    results["peak_memory_gb"] = round(t.peak_bytes / 2**30, 2)
    results["seed"] = args.seed
    write_page(out, results, truth)
    t.end("report")
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print_table(results)
    print(f"\n{args.out}/results.json\n{args.out}/report.html   <- open this")
    return 0


if __name__ == "__main__":
    run(lambda: tour(tyro.cli(TourArgs, description=__doc__)))
