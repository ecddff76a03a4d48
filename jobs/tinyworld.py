"""The whole pipeline on the embedded data set: noisy pairs in, a model and a report out.

    python jobs/tinyworld.py --out runs/demo        # what `make demo` runs

Every stage is the command that a user would type, printed before it runs, so this file is also the
tour of the project. A tour that was interrupted goes on where it stopped, and a finished one starts
afresh.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.environment  # noqa: F401  a line, not a traceback, where packages are missing

import psutil
import tyro

from evaluation.audit import audit_capfilt
from evaluation.report.evaluations import read_evaluation
from evaluation.report.page import Facts, Report, Result, Results, write_report
from evaluation.report.sections import hardware, sections_of
from jobs.cli import run
from jobs.tour.estimate import Work, expected_seconds, measure
from pipeline.tinyworld.scene import Scene
from pipeline.tinyworld.write import load_truth, write_coco, write_eval, write_web

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
FAMILIES = ("t5", "opt")
SECTIONS = ("capfilt", "retrieval", "caption", "vqa")


@dataclass(frozen=True)
class TourArgs:
    """Sizes of the tour. The defaults are the demo's; a test makes a smaller one."""

    out: Path = Path("runs/demo")
    """folder of everything that the tour makes"""
    seed: int = 0
    web: int = 4608
    """noisy image-text pairs for CapFilt"""
    human: int = 3072
    """pairs with human captions, passed through"""
    test: int = 256
    """test images, each of another scene"""
    stage1_steps: int = 100
    """of 64 samples, as all steps here"""
    t5_steps: int = 600
    """of stage 2 with the T5, the slower learner"""
    opt_steps: int = 200
    """of stage 2 with the OPT"""
    ranks: int = 2
    """data-parallel processes of the training stages, one core each"""


@dataclass
class Tour:
    """What the tour has measured so far: seconds per stage and the peak memory of all processes."""

    out: Path
    stages: int
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    _begin: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        threading.Thread(target=self._watch_memory, daemon=True).start()

    def _watch_memory(self) -> None:
        """Sample the memory of this process and all its descendants; shared pages count once."""
        me = psutil.Process()
        while True:
            total = sum(_resident(process) for process in [me, *me.children(recursive=True)])
            self.peak_bytes = max(self.peak_bytes, total)
            time.sleep(2)

    def begin(self, name: str, says: str) -> None:
        elapsed = time.monotonic() - self._begin
        print(
            f"\n[{len(self.seconds) + 1}/{self.stages}] {name}: {says}"
            f"  ({elapsed / 60:.1f} min so far)",
            flush=True,
        )
        self._started = time.monotonic()

    def end(self, name: str) -> None:
        self.seconds[name] = round(time.monotonic() - self._started, 1)

    def command(self, *words: object, launcher: str = "python") -> None:
        """Run one of the project's commands in a process of its own, its output passed on.

        Raises:
            ValueError: the command failed; its own message stands above.
        """
        line = _shown(launcher, words)
        done = subprocess.run(line, cwd=ROOT, env=_environment(), check=False)
        _check(done.returncode, words[0])

    def commands(self, *lines: Sequence[object]) -> None:
        """Run several Python commands side by side, a core each, and pass their output on, one
        after the other, as each has ended.

        Raises:
            ValueError: one of them failed; its own message stands above.
        """

        def run(words: Sequence[object]) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                _shown("python", words),
                cwd=ROOT,
                env=_environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )

        with ThreadPoolExecutor(len(lines)) as pool:
            for words, done in zip(lines, pool.map(run, lines), strict=True):
                for line in done.stdout.splitlines():
                    print(line.rpartition("\r")[2])  # of a progress bar its end
                _check(done.returncode, words[0])


def _shown(launcher: str, words: Sequence[object]) -> list[str]:
    """A command as it is run, printed as a user would type it."""
    line = [launcher, *(str(word) for word in words)]
    print(f"$ {shlex.join(line)}", flush=True)
    return [str(BIN / launcher), *line[1:]]


def _check(code: int, name: object) -> None:
    if code:
        raise ValueError(f"this stage ended with exit code {code}: {name}")


def _resident(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended after it was listed
        return 0
    return getattr(memory, "pss", memory.rss)  # pss on Linux only


def _environment() -> dict[str, str]:
    """One thread a process: small matrices gain nothing from more, and ranks share the cores."""
    return os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }


def announce(args: TourArgs) -> None:
    """Say how long it will take here, and in which number format, before anything begins."""
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
    """Write the web tars, the human-captioned set and the evaluation sets, all from the seed."""
    if (data / "complete").exists():
        print("the data is there already")
        return
    write_web(data / "web", args.web, seed=args.seed, shard_size=512)
    write_coco(data / "coco", args.human, seed=args.seed)
    write_eval(data / "eval", val=min(256, args.test), test=args.test, out=256, seed=args.seed)
    (data / "complete").touch()


def capfilt(tour: Tour, data: Path, out: Path) -> None:
    """Caption, rank and filter the web pairs; pass the human-captioned ones through."""
    common = ["jobs/capfilt.py", "--recipe", "tinyworld"]
    tour.command(*common, "--input", data / "web", "--output", out / "web")
    coco = data / "coco"
    tour.command(
        *common,
        "--input",
        coco / "annotations" / "captions_train.json",
        "--images",
        coco / "images" / "train",
        "--output",
        out / "coco",
    )


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
    """The command that scores one run's checkpoint on the test split."""
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


def read_results(folder: Path) -> dict[str, Any]:
    """What an evaluation wrote."""
    return json.loads((folder / "results.json").read_text())


def targets(results: dict[str, Any]) -> list[tuple[str, float, str, bool]]:
    """The measured values beside what they must be: ``(key, value, must be, holds)``."""
    rows = [
        ("capfilt.right_before", results["capfilt"]["right_before"], "about 0.5", 0.4, 0.6),
        ("capfilt.right_after", results["capfilt"]["right_after"], "≥ 0.85", 0.85, 1.0),
        ("retrieval.tr_r1", results["retrieval"]["tr_r1"], "≥ 0.40", 0.40, 1.0),
        ("retrieval.ir_r1", results["retrieval"]["ir_r1"], "≥ 0.40", 0.40, 1.0),
    ]
    inf = float("inf")
    for family in FAMILIES:
        caption = results["caption"][family]
        least = 3 * caption["shuffled_cider"]
        rows.append((f"caption.{family}.cider", caption["cider"], f"≥ {least:.3f}", least, inf))
    blind = results["vqa"]["t5"]["blind"] + 0.20
    rows.append(("vqa.t5.accuracy", results["vqa"]["t5"]["accuracy"], f"≥ {blind:.3f}", blind, inf))
    return [(key, value, says, low <= value <= high) for key, value, says, low, high in rows]


def write_page(out: Path, results: dict[str, Any], truth: Mapping[str, Scene]) -> None:
    """Write ``report.html``: the targets first, then every stage's own section."""
    must = {key: (says, holds) for key, _, says, holds in targets(results)}
    rows = [
        Result(key, value, must.get(key, ("",))[0], passed=must[key][1] if key in must else None)
        for section in SECTIONS
        for key, value in _flat(section, results[section])
    ]
    seconds = {name: f"{value:.0f} s" for name, value in results["seconds"].items()}
    facts = {"peak memory": f"{results['peak_memory_gb']} GB", "seed": results["seed"]}
    capfilt_out, runs = out / "capfilt", out / "train"
    web = capfilt_out / "web"
    names = ("stage1", *FAMILIES)
    page = [
        Results("What it learned", rows, "Scores between 0 and 1; CIDEr 1.0 is 100 in papers."),
        hardware(),
        Facts("How long it took", seconds | facts),
        *sections_of(
            [web, capfilt_out / "coco"],
            [runs / name for name in names],
            [read_evaluation(out / "eval" / name) for name in names],
            {web: truth},
        ),
    ]
    write_report(out / "report.html", Report("Isthmus on TinyWorld", page))


def print_table(results: dict[str, Any]) -> None:
    """Print every scalar result, with its target where it has one."""
    says = {key: (must, holds) for key, _, must, holds in targets(results)}
    print(f"\n{'':28}{'measured':>10}   must be")
    for section in SECTIONS:
        for key, value in _flat(section, results[section]):
            must, holds = says.get(key, ("", True))
            verdict = "" if not must else "  yes" if holds else "  NO"
            print(f"{key:28}{value:>10.3f}   {must:10}{verdict}")
    total = sum(results["seconds"].values())
    print(f"{'total':28}{total / 60:>6.1f} min   peak memory {results['peak_memory_gb']:.1f} GB")


def _flat(prefix: str, values: dict[str, Any]) -> list[tuple[str, float]]:
    """Scores of a nested dictionary under dotted names, without counts and breakdowns."""
    rows: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, dict) and key != "domains" and not key.startswith("by_"):
            rows += _flat(f"{prefix}.{key}", value)
        elif isinstance(value, float) and not key.startswith("exact_match"):
            rows.append((f"{prefix}.{key}", value))
    return rows


def tour(args: TourArgs) -> int:
    """Run every stage, then print the table and write ``results.json`` and ``report.html``."""
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

    announce(args)
    t = Tour(out, stages=7)
    results: dict[str, Any] = {"caption": {}, "vqa": {}}
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
    t.commands(
        evaluation(t, "stage1", "retrieval"),
        *(evaluation(t, family, "caption", "vqa") for family in FAMILIES),
    )
    results["retrieval"] = read_results(out / "eval" / "stage1")["retrieval"]
    for family in FAMILIES:
        scored = read_results(out / "eval" / family)
        results["caption"][family] = scored["caption"]
        results["vqa"][family] = scored["vqa"]
    shuffled = [results["caption"][family]["shuffled_cider"] for family in FAMILIES]
    results["caption"]["shuffled"] = {"cider": max(shuffled)}
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
