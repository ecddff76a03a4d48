"""The paper's ablation on TinyWorld: tuned with and without the instruction in the Q-Former.

    python jobs/instruct_tinyworld.py --tour runs/demo --out runs/instruct-tinyworld
    python jobs/instruct_tinyworld.py --tour runs/demo --out runs/instruct-tinyworld --seeds 5

It starts from the checkpoints of a finished tour (``make demo``): stage 1, and stage 2 with the T5.
For each seed it tunes two models on the same data, the instruction-aware one and the plain one, and
asks both and the tour's stage 2 about scenes that no model was shown: by templates that tuning saw
and by those that it did not, with kinds of questions that it asked and the one that it did not.
What was made stays: the same command again goes on. See docs/instruct.md.
"""

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

import tyro

from evaluation.benchmarks.folder import read_questions
from evaluation.benchmarks.records import QuestionSet
from jobs.cli import run
from jobs.instructions.trial import Scores, measure, table
from jobs.predict import VQA, Writer, load
from jobs.recipes.instruct import TINY
from jobs.tour.stages import Tour
from pipeline.tinyworld.instructions import write_instructions

RECIPE = "instruct-tinyworld-t5"


@dataclass(frozen=True)
class TrialArgs:
    """Sizes of the trial."""

    tour: Path
    """folder of a finished tour"""
    out: Path
    """folder of the data, the runs and the results"""
    seeds: int = 1
    """number of seeds, counted from 0"""
    steps: int = 300
    """steps of tuning, of 64 samples each"""
    pictures: int = 1500
    """number of training pictures"""
    questions: int = 700
    """number of questions that each model is asked"""

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= 10:
            raise ValueError(f"--seeds {self.seeds}: give 1 to 10")


def tune(trial: Tour, args: TrialArgs, seed: int, name: str, *more: str) -> Path:
    """One tuned model; a finished run is left as it is."""
    runs, out = args.tour / "train", trial.out / f"seed{seed}" / name
    trial.command(
        *("jobs/instruct.py", "--recipe", RECIPE, "--data", trial.out / "data"),
        *("--init", f"{runs / 't5'},{runs / 'stage1'}", "--seed", seed, "--steps", args.steps),
        *("--out", out, *more),
    )
    return out


def ask(checkpoint: Path, questions: QuestionSet) -> Scores:
    """The scores of one checkpoint."""
    model = load(checkpoint)
    assert isinstance(model, Writer)

    return measure(questions, model.encode, partial(model.speak, settings=VQA), TINY.leave_out)


def trial(args: TrialArgs) -> int:
    """Write the data, tune and ask for each seed, then print the table.

    Raises:
        ValueError: the tour has no checkpoints, or a tuning run failed.
    """
    for name in ("stage1", "t5"):
        if not (args.tour / "train" / name / "checkpoints").is_dir():
            raise ValueError(f"--tour {args.tour}: no run in train/{name}; run `make demo`")
    out = args.out.resolve()
    made = Tour(out, stages=1 + 2 * args.seeds)
    if not (out / "data").exists():
        write_instructions(out / "data", args.pictures, seed=0)
    data = args.tour / "data" / "eval"
    questions = read_questions(data, "test", "vqa").first(args.questions)
    found: list[dict[str, Scores]] = []
    stage2 = ask(args.tour / "train" / "t5", questions)
    for seed in range(args.seeds):
        aware = tune(made, args, seed, "aware")
        plain = tune(made, args, seed, "plain", "--model.qformer.no-text")
        scores = {"plain": ask(plain, questions), "aware": ask(aware, questions)}
        found.append({"stage 2": stage2} | scores)
        (out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
        print(*table(found), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    run(lambda: trial(tyro.cli(TrialArgs, description=__doc__)))
