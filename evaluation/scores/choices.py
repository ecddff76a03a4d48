"""Scores of choices among candidates: accuracy, and the area under the ROC curve.

A candidate's score is any number that grows with its likelihood, such as its log-probability.
Ties count as the average over their orders, so that a constant score is worth chance.
"""

import math
from collections.abc import Sequence


def check_scores(scores: Sequence[float], candidates: int) -> None:
    """Refuse the scores of a question that do not fit its candidates.

    Raises:
        ValueError: there is not one score for each candidate, or one is NaN.
    """
    if len(scores) != candidates:
        raise ValueError(f"{len(scores)} scores for {candidates} candidates; give one for each")
    if any(math.isnan(score) for score in scores):
        raise ValueError("a candidate's score is NaN; the checkpoint is broken")


def choice_accuracy(scores: Sequence[float], correct: int) -> float:
    """1.0 where the right candidate has the highest score; 1/n where it shares it among n."""
    best = max(scores)
    return 0.0 if scores[correct] < best else 1 / sum(score == best for score in scores)


def log_sum_exp(scores: Sequence[float]) -> float:
    """Log of the sum of the probabilities whose logs are given; ``-inf`` for none."""
    best = max(scores, default=-math.inf)
    if best == -math.inf:
        return best
    return best + math.log(sum(math.exp(score - best) for score in scores))


def probability(negative: float, positive: float) -> float:
    """p(positive) / (p(negative) + p(positive)) from both log-probabilities.

    Raises:
        ValueError: both are ``-inf``: neither class is possible.
    """
    together = log_sum_exp((negative, positive))
    if together == -math.inf:
        raise ValueError("both classes have probability 0; the checkpoint is broken")
    return math.exp(positive - together)


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Area under the ROC curve, by ranks (Mann and Whitney's U over all pairs).

    The share of pairs of a positive and a negative in which the positive has the higher score; a
    tie counts half.

    Raises:
        ValueError: there is no positive or no negative, or not one score for each.
    """
    positives = sum(positive)
    negatives = len(positive) - positives
    check_scores(scores, len(positive))
    if not positives or not negatives:
        raise ValueError(
            f"AUROC needs both classes, got {positives} positives and {negatives} negatives"
        )
    order = sorted(range(len(scores)), key=scores.__getitem__)
    rank_sum, first = 0.0, 0
    while first < len(order):
        last = first
        while last + 1 < len(order) and scores[order[last + 1]] == scores[order[first]]:
            last += 1
        middle = (first + last) / 2 + 1
        rank_sum += middle * sum(positive[i] for i in order[first : last + 1])
        first = last + 1
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
