"""Simulations: how often a 95 % interval holds the true value, with few images and at the edges.

Many data sets are many scores of one set of images, so that one call resamples them all.
"""

from collections.abc import Callable

import numpy as np
import pytest

from evaluation.intervals.bootstrap import estimate
from evaluation.intervals.observed import Observed, amounts, fractions
from evaluation.intervals.pairs import compare_pairs

SETS = 1500
NOISE = 0.006  # one standard error of a coverage of 95 % in so many sets


def images(count: int, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Items, and the image of each: ``size`` items of each of ``count`` images."""
    return tuple(range(count * size)), tuple(np.repeat(np.arange(count), size).tolist())


def right_or_wrong(
    draw: np.random.Generator, count: int, size: int, rate: float, alike: float
) -> np.ndarray:
    """Answers ``sets items`` of 0 and 1; ``alike``: correlation of two answers to one image."""
    rates = np.full((SETS, count), rate)
    if alike:
        shape = 1 / alike - 1
        rates = draw.beta(rate * shape, (1 - rate) * shape, (SETS, count))
    return (draw.random((SETS, count, size)) < rates[:, :, None]).reshape(SETS, -1)


@pytest.mark.parametrize(
    ("count", "size", "rate", "alike"),
    [
        (30, 1, 0.9, 0.0),
        (30, 5, 0.5, 0.3),
        (30, 5, 0.1, 0.3),
        (50, 1, 0.97, 0.0),
        (100, 1, 0.02, 0.0),
        (100, 5, 0.95, 0.3),
        (300, 5, 0.9, 0.3),
    ],
)
def test_accuracy_is_held_by_93_to_97_of_100_intervals(
    count: int, size: int, rate: float, alike: float
) -> None:
    values = right_or_wrong(np.random.default_rng(1), count, size, rate, alike).astype(float)
    items = images(count, size)
    found = estimate(Observed(*items, {str(n): fractions(v) for n, v in enumerate(values)}))
    held = [one.interval[0] <= rate <= one.interval[1] for one in found if one.interval]
    assert len(held) == SETS
    assert 0.93 - NOISE <= np.mean(held) <= 0.97 + NOISE


@pytest.mark.parametrize("count", [30, 100])
@pytest.mark.parametrize(
    ("truth", "draw"),
    [
        pytest.param(0.8, lambda rng, shape: rng.gamma(0.8, 1, shape), id="cider"),
        pytest.param(1 / 0.15, lambda rng, shape: rng.geometric(0.15, shape), id="mean rank"),
    ],
)
def test_skewed_means_without_bounds_are_held_too(
    count: int, truth: float, draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
) -> None:
    values = draw(np.random.default_rng(2), (SETS, count)).astype(float)
    found = estimate(
        Observed(*images(count, 1), {str(n): amounts(v) for n, v in enumerate(values)})
    )
    held = [one.interval[0] <= truth <= one.interval[1] for one in found if one.interval]
    assert len(held) >= 0.95 * SETS  # none where a few images make up the mean
    assert 0.93 - NOISE <= np.mean(held) <= 0.97 + NOISE


def test_the_difference_of_two_runs_is_held_and_p_is_uniform_where_there_is_none() -> None:
    draw, count, size, sets = np.random.default_rng(3), 50, 4, 400
    hard = draw.beta(2, 1, (sets, count, 1))
    runs = [(draw.random((sets, count, size)) < hard).reshape(sets, -1) for _ in range(2)]
    first, second = (
        Observed(*images(count, size), {str(n): fractions(v) for n, v in enumerate(run)})
        for run in runs
    )
    found = compare_pairs(first, second)
    held = [one.interval[0] <= 0 <= one.interval[1] for one in found if one.interval]
    assert len(held) == sets
    assert 0.92 <= np.mean(held) <= 0.98
    below = [np.mean([one.p <= level for one in found]) for level in (0.05, 0.5)]
    assert below == pytest.approx([0.05, 0.5], abs=0.05)
