"""Train the zoo, the small frozen models of TinyWorld, and measure each of them.

    python jobs/zoo.py                                  # all of them, about an hour on two cores
    python jobs/zoo.py --only clip captioner --out DIR
    python jobs/zoo.py --check                          # measure the shipped ones again

Every model is a normal Hugging Face folder with ``zoo.json`` beside the weights: seed, command,
date, seconds, steps, scores. ``scores.json`` has the scores of all. The same seed, machine and
library versions give the same weights. A model below its bar is an error; its folder is kept.
"""

import json
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

from datetime import UTC, datetime

import torch
import transformers
import tyro
from transformers import AutoTokenizer

from cluster.malloc import keep_freed_memory
from jobs.cli import run
from jobs.zoo_training import language, probes, vision

ROOT = Path(__file__).resolve().parents[1]
Name = Literal["clip", "captioner", "t5", "opt", "llama"]
SHIPPED: tuple[Name, ...] = ("clip", "captioner", "t5", "opt")  # the LLaMA is below its bar
MAX_BYTES = 20_000_000  # largest size of all weights, which are shipped in the repository


@dataclass(frozen=True)
class ZooArgs:
    """Options of the zoo's training."""

    only: tuple[Name, ...] = SHIPPED
    """models to train or to measure, in this order"""
    out: Path = ROOT / "modeling" / "zoo"
    """folder of the models"""
    seed: int = 0
    """seed of weights and data"""
    check: bool = False
    """measure the models in the folder instead of training them"""


def _record(name: str, folder: Path, plan: Any, seconds: float) -> dict[str, float]:
    """Measure a new vision model, write its ``zoo.json`` and compare it with its bars."""
    scores = measure(name, folder)
    weights = folder / "model.safetensors"
    weights.chmod(0o644)
    record = {
        "seed": plan.seed,
        "command": shlex.join(["python", "jobs/zoo.py", "--only", name, "--seed", str(plan.seed)]),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds),
        "steps": plan.steps,
        "weight_bytes": weights.stat().st_size,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "scores": scores,
        "plan": asdict(plan),
    }
    (folder / "zoo.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    probes.demand(name, scores)
    return scores


def train_clip(out: Path, seed: int) -> dict[str, float]:
    """Make ``out/clip``; returns its scores."""
    plan = replace(vision.ClipTraining(), seed=seed)
    start = time.monotonic()
    vision.train_clip(out / "clip", plan)
    return _record("clip", out / "clip", plan, time.monotonic() - start)


def train_captioner(out: Path, seed: int) -> dict[str, float]:
    """Make ``out/captioner`` with the vocabulary of ``out/bert``; returns its scores."""
    if not (out / "bert" / "tokenizer.json").exists():
        language.write_tokenizers(out)
    plan = replace(vision.CaptionerTraining(), seed=seed)
    start = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(out / "bert")
    vision.train_captioner(out / "captioner", tokenizer, plan)
    return _record("captioner", out / "captioner", plan, time.monotonic() - start)


TRAINERS: dict[Name, Callable[[Path, int], dict[str, float]]] = {
    "clip": train_clip,
    "captioner": train_captioner,
    "t5": language.train_t5,
    "opt": language.train_opt,
    "llama": language.train_llama,
}


def measure(name: str, folder: Path) -> dict[str, float]:
    """Scores of one model, on held-out scenes.

    Raises:
        FileNotFoundError: the model is not in ``folder``.
    """
    if not (folder / "model.safetensors").exists():
        raise FileNotFoundError(f"no model in {folder}: train it with jobs/zoo.py --only {name}")
    if name == "clip":
        return probes.check_clip(folder)
    if name == "captioner":
        return probes.check_captioner(folder)
    return language.check(folder)


def demand(name: str, scores: dict[str, float]) -> None:
    """Compare a model's scores with its bars.

    Raises:
        ValueError: a score is below its bar.
    """
    if name in probes.BARS:
        probes.demand(name, scores)
    elif scores["reading"] < language.BAR:
        raise ValueError(f"{name} reads {scores['reading']:.3f} right, below {language.BAR}")


def _print(name: str, scores: dict[str, float]) -> None:
    print(f"{name}:", "  ".join(f"{key} {value:.3f}" for key, value in scores.items()), flush=True)


def check(args: ZooArgs) -> None:
    """Measure the models in the folder and compare each with its bars.

    Raises:
        ValueError: a score is below its bar.
        FileNotFoundError: a model is missing.
    """
    for name in args.only:
        scores = measure(name, args.out / name)
        _print(name, scores)
        demand(name, scores)
    print("every model is above its bar")


def gather(out: Path) -> None:
    """Write ``scores.json``: the scores in each model's ``zoo.json``, and the size of all weights.

    Raises:
        ValueError: the weights are too large to ship.
    """
    records = {
        name: json.loads((out / name / "zoo.json").read_text())
        for name in TRAINERS
        if (out / name / "zoo.json").exists()
    }
    size = sum((out / name / "model.safetensors").stat().st_size for name in records)
    content = {name: record["scores"] for name, record in records.items()}
    text = json.dumps(content | {"weight_bytes": size}, indent=2)
    (out / "scores.json").write_text(text + "\n", encoding="utf-8")
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes of weights in {out}; at most {MAX_BYTES} may ship")


def train(args: ZooArgs) -> None:
    """Train the models one after the other, and measure each.

    Raises:
        ValueError: a model is below a bar, or the weights are too large to ship.
    """
    for number, name in enumerate(args.only, 1):
        print(f"[{number}/{len(args.only)}] training {name}", flush=True)
        _print(name, TRAINERS[name](args.out, args.seed))
    gather(args.out)


def main() -> None:
    args = tyro.cli(ZooArgs, description=__doc__)
    keep_freed_memory()
    check(args) if args.check else train(args)


if __name__ == "__main__":
    run(main)
