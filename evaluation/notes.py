"""Notes beside scores: what a reader must know to judge them, a sentence each."""

import sys
from collections.abc import Sequence

from evaluation.benchmarks.records import CaptionedImage, QuestionSet
from evaluation.scores.answers import FEWEST_ANSWERS

_REMEDY = (
    "look at the prompt, and at how the checkpoint was trained; a language model that has a chat "
    "template is asked through it by --prompt-template chat"
)


def warn_of_empty(texts: Sequence[str]) -> tuple[float, list[str]]:
    """The share of texts that are empty; where it is more than half, a note, also on stderr.

    Returns:
        A fraction between 0 and 1, and one note or none.
    """
    share = sum(not text.strip() for text in texts) / max(1, len(texts))
    if share <= 0.5:
        return share, []
    warning = (
        f"{share:.0%} of {len(texts)} texts are empty: the language model ends at once after "
        f"this prompt, and the scores say nothing about what it sees; {_REMEDY}"
    )
    print(f"warning: {warning}", file=sys.stderr, flush=True)
    return share, [warning]


def reference_notes(items: Sequence[CaptionedImage]) -> list[str]:
    """Notes on the reference captions: none, few, or blank ones."""
    counts = [len(item.references) for item in items if item.references]
    if not counts:
        return ["nothing was scored: no image has a reference caption"]
    notes = []
    if len(counts) < len(items):
        notes.append(
            f"{len(items) - len(counts)} of {len(items)} images have no reference caption; they "
            "were captioned and not scored"
        )
    blank = sum(len(item.captions) - len(item.references) for item in items)
    if blank:
        notes.append(f"{blank} reference captions are blank and were left out")
    if max(counts) == 1:
        notes.append(
            "every image has one reference caption; published scores are against 5 (COCO) or 10 "
            "(NoCaps) and not comparable"
        )
    return notes


def answer_notes(questions: QuestionSet, leave_one_out: bool) -> list[str]:
    """Notes on the reference answers: none, or too few.

    Args:
        leave_one_out: whether the metric is VQA accuracy, which needs ``FEWEST_ANSWERS`` answers.
    """
    asked, answered = len(questions.questions), questions.answered().questions
    if not answered:
        return ["nothing was scored: no question has a reference answer"]
    notes = []
    if len(answered) < asked:
        notes.append(
            f"{asked - len(answered)} of {asked} questions have no reference answer; they were "
            "answered and not scored"
        )
    few = sum(len(question.answers) < FEWEST_ANSWERS for question in answered)
    if few and leave_one_out:
        notes.append(
            f"{few} of {len(answered)} questions have fewer than {FEWEST_ANSWERS} reference "
            "answers, with which VQA accuracy gives a right answer less than 1 (0, 1/3, 2/3 for "
            "1, 2, 3 references); read exact_match instead"
        )
    return notes


def size_notes(images: int, cutoffs: Sequence[int] = (1, 5, 10)) -> list[str]:
    """A note where so few images are searched that a recall is 1 for any model."""
    sure = [f"R@{cutoff}" for cutoff in cutoffs if images <= cutoff]
    if not sure:
        return []
    return [f"among {images} images {', '.join(sure)} of image retrieval is 1 for any model"]


def submission_notes(partial: str) -> list[str]:
    """A note where the answers are not to all items of a split.

    Args:
        partial: the reason; empty: they are.
    """
    if not partial:
        return []
    return [f"the answers are to a part of the split ({partial}); no server takes them, and no "
            "submission file was written"]  # fmt: skip
