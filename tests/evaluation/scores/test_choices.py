"""Accuracy among candidates, AUROC and VisDial's metrics against cases computed by hand."""

import math
import random

import pytest

from evaluation.scores.choices import (
    auroc,
    check_scores,
    choice_accuracy,
    log_sum_exp,
    probability,
)
from evaluation.scores.dialog import all_ranks, is_tied, ndcg, rank_metrics, rank_of


def test_the_best_candidate_is_right_and_ties_share() -> None:
    assert choice_accuracy([-3.0, -1.0, -2.0], 1) == 1.0
    assert choice_accuracy([-3.0, -1.0, -2.0], 2) == 0.0
    assert choice_accuracy([-1.0, -1.0, -2.0, -1.0], 0) == pytest.approx(1 / 3)
    assert choice_accuracy([0.0] * 4, 3) == 0.25


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 scores for 3 candidates"):
        check_scores([0.0, 1.0], 3)
    with pytest.raises(ValueError, match="NaN"):
        check_scores([0.0, math.nan], 2)


def test_log_sum_exp_and_probability() -> None:
    assert log_sum_exp([math.log(0.2), math.log(0.3)]) == pytest.approx(math.log(0.5))
    assert log_sum_exp([-1000.0, -1000.0]) == pytest.approx(-1000 + math.log(2))
    assert log_sum_exp([]) == log_sum_exp([-math.inf]) == -math.inf
    assert probability(math.log(0.1), math.log(0.3)) == pytest.approx(0.75)
    assert probability(-2000.0, -1000.0) == 1.0
    with pytest.raises(ValueError, match="both classes"):
        probability(-math.inf, -math.inf)


def test_auroc_by_hand() -> None:
    # Pairs: (.8, .1) right, (.8, .4) right, (.35, .1) right, (.35, .4) wrong.
    assert auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == 0.75
    # (.5, .5) counts half, (.5, .2) one.
    assert auroc([0.5, 0.5, 0.2], [True, False, False]) == 0.75
    assert auroc([1.0] * 6, [True, False] * 3) == 0.5
    with pytest.raises(ValueError, match="0 positives and 2 negatives"):
        auroc([0.1, 0.2], [False, False])


def test_auroc_equals_the_count_over_all_pairs() -> None:
    draw = random.Random(0)
    for _ in range(50):
        scores = [draw.randrange(5) / 4 for _ in range(12)]
        labels = [True, False, *(draw.random() < 0.4 for _ in range(10))]
        pairs = [
            1.0 if a > b else 0.5 if a == b else 0.0
            for a, x in zip(scores, labels, strict=True)
            for b, y in zip(scores, labels, strict=True)
            if x and not y
        ]
        assert auroc(scores, labels) == pytest.approx(sum(pairs) / len(pairs))


def test_ranks_of_the_right_option() -> None:
    scores = [-1.0, -3.0, -2.0, -3.0]
    assert [rank_of(scores, option) for option in range(4)] == [1.0, 3.5, 2.0, 3.5]
    assert [is_tied(scores, option) for option in range(4)] == [False, True, False, True]
    assert all_ranks(scores) == [1, 3, 2, 4]
    assert rank_of([0.0] * 100, 7) == 50.5


def test_rank_metrics_by_hand() -> None:
    got = rank_metrics([1.0, 2.0, 10.0, 20.0])
    assert got == {
        "mrr": pytest.approx((1 + 1 / 2 + 1 / 10 + 1 / 20) / 4),
        "r1": 0.25,
        "r5": 0.5,
        "r10": 0.75,
        "mean_rank": 8.25,
    }


def test_ndcg_by_hand() -> None:
    relevance = [0.0, 1.0, 0.5, 0.0]  # two options are relevant: only the first two places count
    best = 1 / math.log2(2) + 0.5 / math.log2(3)
    assert ndcg([0.0, 3.0, 2.0, 1.0], relevance) == pytest.approx(1.0)
    assert ndcg([0.0, 2.0, 3.0, 1.0], relevance) == pytest.approx((0.5 + 1 / math.log2(3)) / best)
    assert ndcg([4.0, 3.0, 2.0, 1.0], relevance) == pytest.approx(1 / math.log2(3) / best)
    assert ndcg([4.0, 1.0, 2.0, 3.0], relevance) == 0.0
    # A tie of all four gains the mean 1.5 / 4 at both places.
    tied = 0.375 * (1 + 1 / math.log2(3))
    assert ndcg([1.0] * 4, relevance) == pytest.approx(tied / best)
    with pytest.raises(ValueError, match="no option is relevant"):
        ndcg([1.0, 2.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="1 relevances for 2 options"):
        ndcg([1.0, 2.0], [1.0])
