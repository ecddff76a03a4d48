"""95 % intervals by a bootstrap of images.

Images are drawn with replacement, and with an image all of its items: questions about one image
depend on each other. The spread of the resampled scores is the standard error, with which

- a score between 0 and 1 gets Wilson's score interval with Student's t, for as many independent
  items as would have this error. Its ends stay between 0 and 1, and it does not shrink to nothing
  where all answers are right;
- any other mean or ratio (CIDEr, the mean rank, a judge's relative score) gets the bootstrap-t
  interval, which follows skewness;
- the difference of two runs gets the t interval.

Percentile, BCa, and bootstrap-t intervals of scores near 0 or 1 hold the true value too seldom
with few images, and so does a t interval of CIDEr; the figures are in docs/evaluation.md.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from evaluation.intervals.estimators import Estimator, Name, Summed, estimators
from evaluation.intervals.observed import Observed
from evaluation.intervals.quantiles import t_quantile
from evaluation.intervals.resampling import resamples

RESAMPLES = 1999
FEWEST = 10
"""Images that an interval needs; with fewer its ends would be a guess."""
FEW, CONSTANT, ROUGH = "few", "constant", "rough"
"""Too few images for an interval; no two images differ; few images decide the score."""
_TAIL = 0.025
_DIGITS = 6

Ends = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A score and what is known of its uncertainty.

    Attributes:
        name: dotted name of the score, and its group.
        error: standard error.
        images: effective number of images that the score rests on.
        interval: ends of the 95 % interval; None: there are too few images.
        reason: FEW or CONSTANT where there is no interval, ROUGH where it is rough; else empty.
    """

    name: Name
    value: float
    error: float
    images: float
    interval: Ends | None
    reason: str = ""


def estimate(observed: Observed, seed: int = 0, groups: bool = True) -> list[Estimate]:
    """Every score of a task with its interval.

    Args:
        groups: whether to estimate the scores of groups too.
    """
    if not observed.items:
        return []
    found = estimators(observed, groups)
    all_1C = np.ones((1, found.images))
    points, all_sums = found.of(all_1C), found.split(all_1C @ found.sums_CK)
    drawn: list[list[np.ndarray]] = [[] for _ in found.parts]
    pivots: list[list[np.ndarray]] = [[] for _ in found.parts]
    for counts_BC in resamples(found.images, RESAMPLES, seed, found.items):
        sums_BK = counts_BC @ found.sums_CK
        for place, own_BK in enumerate(found.split(sums_BK)):
            part = found.parts[place]
            drawn[place].append(
                part.value(own_BK) if isinstance(part, Summed) else part.of(counts_BC)
            )
            if _unbounded(part):
                pivots[place].append(_pivots(own_BK, all_sums[place]))
    estimates: list[Estimate] = []
    for place, part in enumerate(found.parts):
        pivot_B = np.concatenate(pivots[place]) if pivots[place] else None
        drawn_BM = np.concatenate(drawn[place])
        estimates += _estimates(part, points[place][0], drawn_BM, pivot_B)
    return estimates


def _unbounded(part: Estimator) -> bool:
    return isinstance(part, Summed) and not part.statistic.unit


def _estimates(
    part: Estimator, points_M: np.ndarray, drawn_BM: np.ndarray, pivot_B: np.ndarray | None
) -> Iterator[Estimate]:
    a_mean = isinstance(part, Summed) and part.statistic.columns == 1
    for column, name in enumerate(part.names):
        value, basis = float(points_M[column]), float(part.basis_M[column])
        error = standard_error(drawn_BM[:, column], basis)
        few = float(part.support_M[column]) < FEWEST
        interval, reason = None, ""
        if basis < FEWEST or (few and not (a_mean and pivot_B is None)):
            reason = FEW
        elif error == 0 and (pivot_B is not None or 0 < value < 1):
            reason = CONSTANT
        elif pivot_B is not None:
            interval = bootstrap_t(value, pivot_B)
        else:
            interval, reason = wilson(value, error, basis), ROUGH if few else ""
        yield Estimate(name, value, error, basis, interval, reason)


def standard_error(drawn_B: np.ndarray, images: float) -> float:
    """Standard error from resampled scores, without the bias of ``images`` draws; exact sums."""
    kept = drawn_B[~np.isnan(drawn_B)].tolist()
    if len(kept) < 2 or images <= 1:
        return 0.0
    middle = math.fsum(kept) / len(kept)
    variance = math.fsum((value - middle) ** 2 for value in kept) / (len(kept) - 1)
    return math.sqrt(variance * images / (images - 1))


def wilson(value: float, error: float, images: float) -> Ends:
    """Wilson's score interval for the number of independent items that would have this error.

    Args:
        images: number of images; where the error is 0 they are the independent items.
    """
    t = -t_quantile(_TAIL, images - 1)
    spread = value * (1 - value)
    items = spread / error**2 if error > 0 and spread > 0 else images
    shrunk = 1 + t * t / items
    centre = (value + t * t / (2 * items)) / shrunk
    half = t / shrunk * math.sqrt(max(spread, 0.0) / items + (t / (2 * items)) ** 2)
    return _rounded(max(0.0, centre - half), min(1.0, centre + half))


def t_interval(value: float, error: float, images: float) -> Ends:
    """The value and t standard errors to both sides."""
    half = -t_quantile(_TAIL, images - 1) * error
    return _rounded(value - half, value + half)


def bootstrap_t(value: float, pivot_B: np.ndarray) -> Ends:
    """Bootstrap-t interval from the resampled pivots, which hold the scale of the score."""
    ordered = np.sort(pivot_B[~np.isnan(pivot_B)])
    place = max(0, round(_TAIL * (len(ordered) + 1)) - 1)
    return _rounded(value - float(ordered[-1 - place]), value - float(ordered[place]))


def _rounded(low: float, high: float) -> Ends:
    return round(low, _DIGITS) + 0.0, round(high, _DIGITS) + 0.0


def _pivots(sums_BK: np.ndarray, all_1K: np.ndarray) -> np.ndarray:
    """Studentised deviations ``B`` of means in resamples, times the mean's own standard error.

    The standard error of a mean or ratio ``sum(s) / sum(n)`` over images follows from the sums of
    the squares and products of s and n. NaN where a resample does not vary.

    Args:
        all_1K: sums over all images.
    """

    def of(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s, n, *_, ss, sn, nn = sums.T
        mean = s / n
        return mean, np.sqrt(np.maximum(ss - 2 * mean * sn + mean**2 * nn, 0.0)) / n

    mean, error = of(all_1K)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_B, error_B = of(sums_BK)
        pivot_B = (mean_B - mean) / error_B * error
    return np.where(error_B > 0, pivot_B, np.nan)
