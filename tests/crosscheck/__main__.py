"""A trained checkpoint beside Hugging Face's classes, and our scores beside others' scorers.

    make crosscheck CHECKPOINT=runs/demo/train/t5 DATA=runs/demo/data/eval
    python -m tests.crosscheck --checkpoint runs/demo/train/t5 --data runs/demo/data/eval

The checkpoint is exported as by ``jobs/convert.py`` and answers and captions through Hugging Face's
own classes, with the same prompts and decoding, greedy and with five beams. Then our answers are
scored by formulas that are written anew, and with ``--lmms`` by lmms-eval. The exit status is 1
where fewer than 99 % of the texts are equal, or a score differs by more than 1e-6.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from evaluation.benchmarks.folder import read_captions, read_questions
from jobs.benchmarks.evaluate.huggingface import Peer
from jobs.benchmarks.measure import table
from jobs.predict import Writer, load
from tests.crosscheck.answers import Compared, compare
from tests.crosscheck.scoring import Score, Scored

SHARE, CLOSE = 0.99, 1e-6


@dataclass(frozen=True)
class Arguments:
    """Options of the cross-check.

    Attributes:
        checkpoint: stage-2 checkpoint of ours.
        data: folder with images and annotations, as ``jobs/evaluate.py`` takes it.
        split: split of the data.
        questions: questions at most, of VQAv2's file and of GQA's.
        captions: images to caption at most.
        lmms: interpreter of an environment with lmms-eval; None: it is left out.
    """

    checkpoint: Path
    data: Path
    split: str = "test"
    questions: int = 250
    captions: int = 100
    lmms: Path | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print; 1 where the two sides disagree."""
    args = tyro.cli(Arguments, args=arguments, description=__doc__)
    vqa = read_questions(args.data, args.split, "vqa").first(args.questions)
    gqa = read_questions(args.data, args.split, "gqa").first(args.questions)
    items = read_captions(args.data, args.split)[: args.captions]
    writer = load(args.checkpoint, dtype="fp32", batch_size=32)
    if not isinstance(writer, Writer):
        raise ValueError(f"--checkpoint {args.checkpoint}: give a checkpoint of stage 2")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        compared = compare(writer, Peer(args.checkpoint, folder / "huggingface"), vqa, items)
        print(table(text_rows(compared)), flush=True)
        images = [gqa.images[question.image_id] for question in gqa.questions]
        said = writer.answer(images, [question.text for question in gqa.questions])
        ours = {one.what: one.ours for one in compared}  # the last of each: by beam search
        scored = Scored((vqa, ours["answers"]), (gqa, said), (items, ours["captions"]))
        scores = scored.by_formulas()
        if args.lmms is not None:
            scores += scored.by_lmms(args.lmms, folder / "lmms")
        print(table(score_rows(scores)))
    return 0 if agree(compared, scores) else 1


def agree(compared: Sequence[Compared], scores: Sequence[Score]) -> bool:
    """Whether enough texts are equal, and all scores."""
    texts = all(one.equal >= SHARE * len(one.ours) for one in compared)
    return texts and all(score.difference <= CLOSE for score in scores)


def text_rows(compared: Sequence[Compared]) -> list[list[str]]:
    """The table of texts, with one that differs."""
    rows = [
        [
            "beside Hugging Face's classes",
            "equal",
            "of",
            "share",
            "different texts",
            "first that differs",
        ]
    ]
    for one in compared:
        pairs = zip(one.ours, one.theirs, strict=True)
        other = next((f"{mine!r} / {their!r}" for mine, their in pairs if mine != their), "")
        share = f"{one.equal / len(one.ours):.1%}"
        counts = [str(one.equal), str(len(one.ours)), share, str(len(set(one.ours)))]
        rows.append([f"{one.what}, {one.search}", *counts, other])
    return rows


def score_rows(scores: Sequence[Score]) -> list[list[str]]:
    """The table of scores."""
    rows = [["score of our texts", "by", "count", "ours", "theirs", "difference"]]
    for one in scores:
        numbers = [f"{one.ours:.6f}", f"{one.theirs:.6f}", f"{one.difference:.1e}"]
        rows.append([one.metric, one.scorer, str(one.count), *numbers])
    return rows


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, FileNotFoundError) as mistake:
        sys.exit(f"error: {mistake}")
