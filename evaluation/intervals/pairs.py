"""Two runs over the same items: the difference of each score, its interval and its p-value.

The interval is the difference and t of its standard errors to both sides; both runs are resampled
by the same images. p is by sign-flips, that is, by swapping the runs' results on random images: if
the two were equally good, a swap would change nothing but chance. That test needs no assumption
about the distribution and holds at any number of images, and for BLEU, METEOR and AUROC too.

Shape suffixes: N items, C images, K columns, B resamples, M scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.benchmarks.records import ImageId
from evaluation.intervals.bootstrap import (
    FEW,
    FEWEST,
    RESAMPLES,
    ROUGH,
    Ends,
    standard_error,
    t_interval,
)
from evaluation.intervals.estimators import Estimators, Ranked, auroc_of_rows, estimators, midranks
from evaluation.intervals.observed import Observed
from evaluation.intervals.resampling import resamples, swaps
from evaluation.intervals.statistics import STATISTICS

SWAPS = 9999
_SLACK = 1e-12


class NotComparable(ValueError):
    """Two runs did not answer the same, or were not scored in the same way."""


@dataclass(frozen=True)
class Difference:
    """One score of two runs.

    Attributes:
        score: dotted name of the score.
        interval: ends of the 95 % interval of the second minus the first; None: too few images.
        p: probability of a difference as large where both runs are equally good, two-sided.
        images: number of images on which the two runs differ.
        reason: FEW where there is no interval, ROUGH where it is rough; else empty.
    """

    score: str
    first: float
    second: float
    interval: Ends | None
    p: float
    images: int
    reason: str = ""

    @property
    def value(self) -> float:
        """The second minus the first."""
        return self.second - self.first


def compare_pairs(first: Observed, second: Observed, seed: int = 0) -> list[Difference]:
    """The differences of the scores that both runs have, without groups.

    Raises:
        NotComparable: the runs have different items, or items of different images.
    """
    first, second = _same_items(first, second)
    ones = estimators(first, groups=False), estimators(second, groups=False)
    whole = np.ones((1, ones[0].images))
    point_of_first, point_of_second = (np.concatenate(one.of(whole), axis=1)[0] for one in ones)
    errors = _errors(ones, seed)
    beyond = _beyond(ones, point_of_second - point_of_first, seed)
    bases = np.minimum(*(np.concatenate([part.basis_M for part in one.parts]) for one in ones))
    differing = _differing(first, second)
    found = []
    for place, name in enumerate(first.names()):
        values = float(point_of_first[place]), float(point_of_second[place])
        interval, reason = None, FEW
        if differing[place] == 0:
            interval, reason = (0.0, 0.0), ""
        elif bases[place] >= FEWEST:
            interval = t_interval(values[1] - values[0], errors[place], bases[place])
            reason = ROUGH if differing[place] < FEWEST else ""
        p = float((1 + beyond[place]) / (1 + SWAPS))
        found.append(Difference(name, *values, interval, p, differing[place], reason))
    return found


def _same_items(first: Observed, second: Observed) -> tuple[Observed, Observed]:
    """The shared scores of both runs over the same items in the same order."""
    ours, theirs = set(first.items), set(second.items)
    if ours != theirs:
        alone = sorted(map(str, ours ^ theirs))
        raise NotComparable(
            f"the runs answered different items: {len(ours - theirs)} of {len(ours)} are only in "
            f"the first and {len(theirs - ours)} of {len(theirs)} only in the second, such as "
            f"{alone[0]}; compare runs over the same data, split and --limit"
        )
    second = reordered(second, first.items)
    moved = [i for i, (a, b) in enumerate(zip(first.images, second.images, strict=True)) if a != b]
    if moved:
        raise NotComparable(
            f"item {first.items[moved[0]]} is of image {first.images[moved[0]]} in the first run "
            f"and of {second.images[moved[0]]} in the second; compare runs over the same data"
        )
    shared = [name for name in first.scores if name in second.scores]
    shared = [n for n in shared if first.scores[n].statistic == second.scores[n].statistic]
    for name in shared:
        ranked = first.scores[name].statistic == "auroc"
        if ranked and (first.scores[name].rows[:, 1] != second.scores[name].rows[:, 1]).any():
            raise NotComparable(f"{name}: the classes of the items differ between the runs")
    one, other = (
        replace(run, scores={name: run.scores[name] for name in shared}) for run in (first, second)
    )
    return one, other


def reordered(observed: Observed, items: Sequence[ImageId]) -> Observed:
    """The same observations in another order of the items."""
    place = {item: number for number, item in enumerate(observed.items)}
    order = [place[item] for item in items]
    scores = {name: replace(one, rows=one.rows[order]) for name, one in observed.scores.items()}
    return Observed(
        tuple(observed.items[at] for at in order),
        tuple(observed.images[at] for at in order),
        scores,
        {name: tuple(names[at] for at in order) for name, names in observed.groups.items()},
        observed.grouped,
    )


def _errors(ones: tuple[Estimators, Estimators], seed: int) -> list[float]:
    """The standard error of each difference, both runs resampled by the same images."""
    first, second = ones
    drawn = [
        np.concatenate(second.of(counts_BC), axis=1) - np.concatenate(first.of(counts_BC), axis=1)
        for counts_BC in resamples(first.images, RESAMPLES, seed, first.items)
    ]
    return [standard_error(column, first.images) for column in np.concatenate(drawn).T]


def _beyond(ones: tuple[Estimators, Estimators], point_M: np.ndarray, seed: int) -> np.ndarray:
    """In how many of the swaps the difference ``M`` of the scores is at least the true one."""
    first, second = ones
    change_CK = second.sums_CK - first.sums_CK
    beyond_M = np.zeros(len(point_M), dtype=np.int64)
    for swap_BC in swaps(first.images, SWAPS, seed, first.items):
        moved_BK = swap_BC @ change_CK
        sums = first.sums_CK.sum(axis=0) + moved_BK, second.sums_CK.sum(axis=0) - moved_BK
        mixed = [one.of_sums(sums_BK) for one, sums_BK in zip(ones, sums, strict=True)]
        found = []
        for a, b, *scores in zip(first.parts, second.parts, *mixed, strict=True):
            if isinstance(a, Ranked) and isinstance(b, Ranked):
                found.append(_swapped_auroc(a, b, swap_BC))
            else:
                found.append(scores[1] - scores[0])
        difference_BM = np.concatenate(found, axis=1)
        beyond_M += (np.abs(difference_BM) >= np.abs(point_M) - _SLACK).sum(axis=0)
    return beyond_M


def _swapped_auroc(first: Ranked, second: Ranked, swap_BC: np.ndarray) -> np.ndarray:
    """The differences ``B 1`` of AUROC where the ranks of some images are swapped.

    Two models' scores have scales of their own; their ranks can be swapped (Bandos, Rockette and
    Gur 2005).
    """
    a_N, b_N = midranks(first.score_N), midranks(second.score_N)
    swapped_BN = swap_BC[:, first.index_N] > 0
    one = auroc_of_rows(np.where(swapped_BN, b_N, a_N), first.positive_N)
    return auroc_of_rows(np.where(swapped_BN, a_N, b_N), first.positive_N) - one


def _differing(first: Observed, second: Observed) -> list[int]:
    """The number of images on which two runs differ, for each score."""
    counts = []
    for name, one in first.scores.items():
        ours, theirs = one.rows, second.scores[name].rows
        if one.statistic == "auroc":
            ours, theirs = midranks(ours[:, 0])[:, None], midranks(theirs[:, 0])[:, None]
        same = ((ours == theirs) | (np.isnan(ours) & np.isnan(theirs))).all(axis=1)
        images = {first.images[at] for at in np.flatnonzero(~same)}
        counts += [len(images)] * len(STATISTICS[one.statistic].suffixes)
    return counts
