"""GQA's numbers beside accuracy: binary and open questions, distribution and consistency.

By the definitions of GQA's own scorer. Its validity and plausibility need the choices of every
question, which the published test-dev set does not have; grounding needs attention maps.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from evaluation.benchmarks.records import ImageId, Question
from evaluation.scores.answers import Metric

_OPEN = "query"


def gqa_scores(
    questions: Sequence[Question],
    given: Mapping[ImageId, str],
    metric: Metric,
    normal: Callable[[str], str] = str,
) -> dict[str, float]:
    """The numbers that the questions' file allows.

    Args:
        questions: questions with one reference answer each; in a file of all questions those that
            are not balanced are only asked for consistency.
        given: predicted answer by question id.
        normal: form in which answers are counted for the distribution.

    Returns:
        binary, open: accuracy of questions whose structural type is not, or is, ``query``.
        distribution: chi-square of the predicted answers in each global group against the right
        ones, weighted by the size of the group, over 100; lower is better.
        consistency: over the balanced questions with a right answer, mean accuracy of the questions
        that it entails. Left out where one of these is not among ``questions``.
    """
    right = {q.question_id: metric(given[q.question_id], q.answers) for q in questions}
    balanced = [q for q in questions if q.balanced]
    scores: dict[str, float] = {}
    for name, wanted in (("binary", False), ("open", True)):
        of_kind = [q for q in balanced if is_open(q) is wanted]
        if of_kind:
            scores[name] = fmean(right[q.question_id] for q in of_kind)
    grouped = [q for q in balanced if q.group]
    if grouped:
        gold = _count(grouped, lambda q: normal(q.answers[0]))
        scores["distribution"] = chi_square(
            gold, _count(grouped, lambda q: normal(given[q.question_id]))
        )
    followed = _consistency(balanced, right)
    return scores if followed is None else scores | {"consistency": followed}


def chi_square(
    gold: Mapping[str, Mapping[str, int]], predicted: Mapping[str, Mapping[str, int]]
) -> float:
    """Distance of the predicted answers' counts from the right ones', by group, over 100."""
    total = weighted = 0.0
    for group, answers in gold.items():
        size = sum(answers.values())
        said = predicted.get(group, {})
        distance = sum((said.get(answer, 0) - n) ** 2 / n for answer, n in answers.items())
        total += size
        weighted += distance * size
    return weighted / total / 100


def _count(
    questions: Sequence[Question], answer: Callable[[Question], str]
) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for question in questions:
        counts.setdefault(question.group, Counter())[answer(question)] += 1
    return counts


def entailed_accuracy(
    questions: Sequence[Question], right: Mapping[ImageId, float]
) -> list[float | None] | None:
    """For each question with a right answer the mean accuracy of the others that it entails.

    Args:
        right: accuracy by question id.

    Returns:
        A value for each question, None where its answer is wrong or entails nothing else; or None
        where an entailed question was not asked.
    """
    means: list[float | None] = []
    for question in questions:
        others = [key for key in question.entailed if key != question.question_id]
        if not others or not right[question.question_id]:
            means.append(None)
            continue
        if any(key not in right for key in others):
            return None
        means.append(fmean(right[key] for key in others))
    return means


def _consistency(questions: Sequence[Question], right: Mapping[ImageId, float]) -> float | None:
    means = [mean for mean in entailed_accuracy(questions, right) or () if mean is not None]
    return fmean(means) if means else None


def is_open(question: Question) -> bool | None:
    """Whether a question is open, which its structural type says; None where it has no type."""
    return question.answer_type == _OPEN if question.answer_type else None
