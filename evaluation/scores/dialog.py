"""Scores of Visual Dialog: the rank of the right answer among 100 options, and NDCG.

Definitions by the scorer of the VisDial challenge, which sorts: there options with equal scores
get the order of the sort. Here they share their places, which is the mean over all orders.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from statistics import fmean

CUTOFFS = (1, 5, 10)


def rank_of(scores: Sequence[float], correct: int) -> float:
    """Rank of the right option, from 1: 1 + the better ones + half of the others with its score."""
    own = scores[correct]
    better = sum(score > own for score in scores)
    return 1 + better + (sum(score == own for score in scores) - 1) / 2


def is_tied(scores: Sequence[float], correct: int) -> bool:
    """Whether another option has the score of the right one."""
    return sum(score == scores[correct] for score in scores) > 1


def rank_metrics(ranks: Sequence[float]) -> dict[str, float]:
    """``mrr``, ``r1``, ``r5``, ``r10`` and ``mean_rank`` of the right options of all rounds."""
    hits = {f"r{cutoff}": fmean(rank <= cutoff for rank in ranks) for cutoff in CUTOFFS}
    return {"mrr": fmean(1 / rank for rank in ranks), **hits, "mean_rank": fmean(ranks)}


def all_ranks(scores: Sequence[float]) -> list[int]:
    """Rank of every option, 1 to n and each once, as the challenge's server takes them.

    Of options with the same score the earlier one comes first.
    """
    order = sorted(range(len(scores)), key=lambda option: -scores[option])
    ranks = [0] * len(scores)
    for place, option in enumerate(order, 1):
        ranks[option] = place
    return ranks


def ndcg(scores: Sequence[float], relevance: Sequence[float]) -> float:
    """Normalised discounted cumulative gain of one round with dense annotations.

    The first k options by score gain relevance / log2(place + 1), where k options have a relevance
    above 0; the sum is divided by that of the best order. Options with equal scores gain the mean
    of their relevances.

    Raises:
        ValueError: there is not one relevance for each score, or none above 0.
    """
    if len(scores) != len(relevance):
        raise ValueError(f"{len(relevance)} relevances for {len(scores)} options")
    relevant = sum(value > 0 for value in relevance)
    if not relevant:
        raise ValueError("no option is relevant; NDCG needs at least one")
    gains: list[float] = []
    order = sorted(range(len(scores)), key=lambda option: -scores[option])
    for _, tied in groupby(order, key=scores.__getitem__):
        values = [relevance[option] for option in tied]
        gains += [fmean(values)] * len(values)
    best = sorted(relevance, reverse=True)
    return _discounted(gains[:relevant]) / _discounted(best[:relevant])


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(place + 1) for place, gain in enumerate(gains, 1))
