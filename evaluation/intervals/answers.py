"""What is observed of answers to questions, free or chosen among candidates."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.benchmarks.records import ImageId, Question, QuestionSet
from evaluation.intervals.observed import Observation, Observed, amounts, fractions
from evaluation.scores.answers import METRICS, leaves_one_out, matches_any, normalise_answer
from evaluation.scores.choices import choice_accuracy, probability
from evaluation.scores.dialog import CUTOFFS, ndcg, rank_of
from evaluation.scores.gqa import entailed_accuracy, is_open
from evaluation.scores.judged import Pair

Rows = Sequence[Mapping[str, Any]]
"""Predictions, as the results file holds them."""


def observe_answers(
    questions: QuestionSet, rows: Rows, controls: Mapping[str, Rows], metric: str
) -> Observed:
    """What the scores of free answers are computed from (``score_answers``).

    Args:
        questions: questions with reference answers.
        rows: the predictions as they are scored (as lemmas); a question without one is left out.
        controls: predictions of the controls by name (``blind``, ``text_only``).
        metric: name of the metric.
    """
    given = {row["question_id"]: row["answer"] for row in rows}
    answered = [q for q in questions.questions if q.question_id in given]
    asked = [q for q in answered if q.balanced]
    scores = _of_answers(asked, given, metric, "")
    for name, of_control in controls.items():
        said = {row["question_id"]: row["answer"] for row in of_control}
        scores |= _of_answers(asked, said, metric, name)
    if metric.startswith("gqa."):
        scores |= _of_gqa(asked, answered, given, metric)
    return _observed(asked, scores)


def _of_answers(
    asked: Sequence[Question], given: Mapping[ImageId, str], metric: str, control: str
) -> dict[str, Observation]:
    """Accuracy, and exact match where the results have it."""

    def each(score: Any) -> Observation:
        said = [(given.get(q.question_id), q.answers) for q in asked]
        return fractions([None if text is None else score(text, to) for text, to in said])

    found = {control or "accuracy": each(METRICS[metric])}
    if leaves_one_out(metric):
        found["exact_match" + (f"_{control}" if control else "")] = each(matches_any)
    return found


def _of_gqa(
    asked: Sequence[Question],
    answered: Sequence[Question],
    given: Mapping[ImageId, str],
    metric: str,
) -> dict[str, Observation]:
    """GQA's numbers that are means. Its distribution is none: resamples make it larger."""
    right = {q.question_id: METRICS[metric](given[q.question_id], q.answers) for q in answered}
    normal = str if metric == "gqa.strict" else normalise_answer
    found: dict[str, list[float | None]] = {
        name: [right[q.question_id] if is_open(q) is kind else None for q in asked]
        for name, kind in (("binary", False), ("open", True))
    }
    for part, sizes in (
        ("per_words", [len(q.text.split()) for q in asked]),
        ("per_steps", [q.steps for q in asked]),
    ):
        for size in {size for size in sizes if size is not None}:
            pairs = zip(asked, sizes, strict=True)
            found[f"{part}.{size}"] = [
                right[q.question_id] if n == size else None for q, n in pairs
            ]
    for name, kind in (("validity", "valid"), ("plausibility", "plausible")):
        fitting = [
            (normal(given[q.question_id]), set(map(normal, getattr(q, kind) or ()))) for q in asked
        ]
        found[name] = [float(said in those) if those else None for said, those in fitting]
    found["consistency"] = entailed_accuracy(asked, right) or [None]
    counted = {name: v for name, v in found.items() if any(value is not None for value in v)}
    return {name: fractions(values) for name, values in counted.items()}


def observe_choices(
    questions: QuestionSet, rows: Rows, controls: Mapping[str, Rows], metric: str
) -> Observed:
    """What the scores of choices among candidates are computed from (``score_choices``).

    Args:
        questions: questions whose right candidate is known.
        rows: the predictions; a question without one is left out.
        controls: predictions of the controls by name, of which the first score is observed.
        metric: accuracy, auroc or dialog.
    """
    given = {row["question_id"]: row["scores"] for row in rows}
    asked = [q for q in questions.questions if q.correct is not None and q.question_id in given]
    scores = _of_choices(asked, given, metric)
    for name, of_control in controls.items():
        said = {row["question_id"]: row["scores"] for row in of_control}
        scores[name] = next(iter(_of_choices(asked, said, metric).values()))
    return _observed(asked, scores)


def _of_choices(
    asked: Sequence[Question], given: Mapping[ImageId, Sequence[float]], metric: str
) -> dict[str, Observation]:
    pairs = [(given.get(q.question_id), q.correct or 0) for q in asked]
    accuracy = [None if s is None else choice_accuracy(s, right) for s, right in pairs]
    if metric == "accuracy":
        return {"accuracy": fractions(accuracy)}
    if metric == "auroc":
        rows = [
            (np.nan, right) if scores is None else (probability(*scores), right)
            for scores, right in pairs
        ]
        both = len({right for _, right in rows}) == 2
        area = {"auroc": Observation(np.array(rows, dtype=np.float64), "auroc")} if both else {}
        return area | {"accuracy": fractions(accuracy)}
    ranks = [None if s is None else rank_of(s, right) for s, right in pairs]
    found = {"mrr": fractions([None if rank is None else 1 / rank for rank in ranks])}
    for cutoff in CUTOFFS:
        hits = [None if rank is None else float(rank <= cutoff) for rank in ranks]
        found[f"r{cutoff}"] = fractions(hits)
    found["mean_rank"] = amounts(ranks)
    gains = [
        ndcg(given[q.question_id], q.relevance)
        if q.question_id in given and any(q.relevance)
        else None
        for q in asked
    ]
    return found | ({"ndcg": fractions(gains)} if any(gain is not None for gain in gains) else {})


def _observed(asked: Sequence[Question], scores: Mapping[str, Observation]) -> Observed:
    groups = {
        "question_type": tuple(q.question_type for q in asked),
        "answer_type": tuple(q.answer_type for q in asked),
    }
    return Observed(
        tuple(q.question_id for q in asked),
        tuple(q.image_id for q in asked),
        scores,
        {name: names for name, names in groups.items() if any(names)},
    )


def observe_judged(questions: Sequence[Question], pairs: Mapping[ImageId, Pair]) -> Observed:
    """What the scores of judged answers are computed from (``judged_scores``).

    Args:
        pairs: the judge's numbers for the reference and for the model by question id; a question
            without them is left out.
    """
    asked = [q for q in questions if q.question_id in pairs]
    numbers = np.array([pairs[q.question_id][::-1] for q in asked], dtype=np.float64).reshape(-1, 2)
    scores = {"relative": Observation(numbers, "ratio")}
    for category in sorted({q.question_type for q in asked}):
        inside = np.array([[q.question_type == category] for q in asked])
        rows = np.where(inside, numbers, np.nan)
        scores[f"by_question_type.{category}"] = Observation(rows, "ratio")
    scores |= {
        "model": amounts(numbers[:, 0].tolist()),
        "reference": amounts(numbers[:, 1].tolist()),
    }
    ids = tuple(q.question_id for q in asked), tuple(q.image_id for q in asked)
    return Observed(*ids, scores)
