"""Scores of many resamples at once: as functions of sums, or by ranks.

Shape suffixes: N items, C images, K columns, B resamples, M scores, U different values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evaluation.intervals.observed import Observation, Observed, group_key
from evaluation.intervals.resampling import image_sums, index_of, on_grid
from evaluation.intervals.statistics import STATISTICS, Statistic

MOST_BLOCKS = 8192
"""Number of units that are resampled at most; more would change an interval's width by less than a
hundredth."""
Name = tuple[str, str]
"""Dotted name of a score, and the group that it is of, or nothing."""


@dataclass(frozen=True, eq=False)
class Summed:
    """Scores that follow from sums.

    Attributes:
        names: name of each of the M scores.
        sums_CK: sums over the items of each image (or block): the columns of the statistic, the
            number of items, and where a score has no bounds the squares and products of the first
            two columns.
        basis_M: effective number of images that the scores rest on.
        support_M: effective number of images that decide them: the rarer of right and wrong.
    """

    names: tuple[Name, ...]
    statistic: Statistic
    sums_CK: np.ndarray
    basis_M: np.ndarray
    support_M: np.ndarray

    def value(self, sums: np.ndarray) -> np.ndarray:
        """The scores ``B M`` of sums ``B K``."""
        return self.statistic.value(sums)


@dataclass(frozen=True, eq=False)
class Ranked:
    """AUROC, by the ranks of the items' scores.

    Attributes:
        score_N, positive_N: score of each item, and whether it is of the positive class.
        index_N: number of the image (or block) of each item.
        basis_M: effective number of images of the rarer class, once.
    """

    names: tuple[Name, ...]
    score_N: np.ndarray
    positive_N: np.ndarray
    index_N: np.ndarray
    basis_M: np.ndarray

    @property
    def support_M(self) -> np.ndarray:
        """The same as the basis."""
        return self.basis_M

    def of(self, counts_BC: np.ndarray) -> np.ndarray:
        """AUROC ``B 1`` of resamples; NaN where one has no item of a class."""
        order_N = np.argsort(self.score_N, kind="stable")
        sorted_N = self.score_N[order_N]
        first_U = np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]])
        weight_BN = counts_BC[:, self.index_N[order_N]]
        positive_N = self.positive_N[order_N]
        positive_BU = np.add.reduceat(weight_BN * positive_N, first_U, axis=1)
        negative_BU = np.add.reduceat(weight_BN * ~positive_N, first_U, axis=1)
        below_BU = np.cumsum(negative_BU, axis=1) - negative_BU / 2
        won_B1 = (positive_BU * below_BU).sum(axis=1, keepdims=True)
        pairs_B1 = positive_BU.sum(axis=1, keepdims=True) * negative_BU.sum(axis=1, keepdims=True)
        return np.divide(won_B1, pairs_B1, out=np.full(won_B1.shape, np.nan), where=pairs_B1 > 0)


Estimator = Summed | Ranked


@dataclass(frozen=True, eq=False)
class Estimators:
    """All scores of a task, whose sums are resampled by one matrix product.

    Attributes:
        images: number of images, or of blocks of images where there are very many.
        items: number of items.
    """

    parts: tuple[Estimator, ...]
    images: int
    items: int

    @cached_property
    def sums_CK(self) -> np.ndarray:
        """The sums of all parts side by side."""
        none = np.zeros((self.images, 0))
        summed = [part.sums_CK for part in self.parts if isinstance(part, Summed)]
        return np.concatenate([none, *summed], axis=1)

    def of(self, counts_BC: np.ndarray) -> list[np.ndarray]:
        """The scores ``B M`` of each part in resamples."""
        found = self.of_sums(counts_BC @ self.sums_CK)
        return [
            part.of(counts_BC) if isinstance(part, Ranked) else scores_BM
            for part, scores_BM in zip(self.parts, found, strict=True)
        ]

    def of_sums(self, sums_BK: np.ndarray) -> list[np.ndarray]:
        """The scores ``B M`` of each part from sums; of no column where a part has no sums."""
        return [
            part.value(own_BK) if isinstance(part, Summed) else own_BK
            for part, own_BK in zip(self.parts, self.split(sums_BK), strict=True)
        ]

    def split(self, sums_BK: np.ndarray) -> list[np.ndarray]:
        """The columns of each part."""
        widths = [p.sums_CK.shape[1] if isinstance(p, Summed) else 0 for p in self.parts]
        return np.split(sums_BK, np.cumsum(widths)[:-1], axis=1)


def estimators(observed: Observed, groups: bool = True) -> Estimators:
    """The estimators of all scores of a task.

    More than ``MOST_BLOCKS`` images are put together in so many blocks, which are resampled in
    their place: sums of independent images have the variance that the images have.

    Args:
        groups: whether to estimate the scores of groups too.
    """
    index_N, images = index_of(observed.images)
    parts: list[Estimator] = []
    for name, one in observed.scores.items():
        kept = np.flatnonzero(one.counted)
        if one.statistic == "auroc":
            parts.append(_ranked(name, one.rows[kept], index_N[kept], images))
            continue
        statistic, rows = STATISTICS[one.statistic], counted_rows(one)
        names = tuple((name + suffix, "") for suffix in statistic.suffixes)
        parts.append(_summed(names, statistic, rows, index_N, images))
        if not groups or name not in observed.grouped or statistic.columns > 1:
            continue
        for grouping, of_items in observed.groups.items():
            key = group_key(grouping, name)
            for group, at in _places(of_items).items():
                parts.append(_summed(((key, group),), statistic, rows[at], index_N[at], images))
    return Estimators(tuple(parts), min(images, MOST_BLOCKS), len(observed.items))


def _summed(
    names: tuple[Name, ...],
    statistic: Statistic,
    rows_NK: np.ndarray,
    index_N: np.ndarray,
    images: int,
) -> Summed:
    sums_CK = image_sums(rows_NK, index_N, images)
    basis_M = np.full(len(names), effective(sums_CK[:, -1]))
    masses = statistic.masses(sums_CK)
    support_M = np.min([[effective(column) for column in mass.T] for mass in masses], axis=0)
    if images > MOST_BLOCKS:
        sums_CK = image_sums(rows_NK, index_N % MOST_BLOCKS, MOST_BLOCKS)
    if not statistic.unit:
        s, n = sums_CK.T[:2]
        squares = on_grid(np.stack([s * s, s * n, n * n], axis=1), len(sums_CK))
        sums_CK = np.concatenate([sums_CK, squares], axis=1)
    return Summed(names, statistic, sums_CK, basis_M, support_M)


def _ranked(name: str, rows_N2: np.ndarray, index_N: np.ndarray, images: int) -> Ranked:
    positive_N = rows_N2[:, 1] == 1
    counts = [
        np.bincount(index_N, weights=chosen, minlength=images)
        for chosen in (positive_N, ~positive_N)
    ]
    basis_M = np.array([min(effective(column) for column in counts)])
    return Ranked(((name, ""),), rows_N2[:, 0], positive_N, index_N % MOST_BLOCKS, basis_M)


def counted_rows(one: Observation) -> np.ndarray:
    """The rows of an observation with their count of 1 behind them; 0 where an item is left out."""
    rows = np.where(one.counted[:, None], one.rows, 0.0)
    return np.concatenate([rows, one.counted[:, None].astype(np.float64)], axis=1)


def _places(of_items: Sequence[str]) -> dict[str, np.ndarray]:
    """The places of the items of each group, in the order of its names."""
    number = {group: place for place, group in enumerate(sorted({*of_items} - {""}))}
    codes = np.array([number.get(group, -1) for group in of_items], dtype=np.int64)
    return {group: np.flatnonzero(codes == place) for group, place in number.items()}


def effective(weights_C: np.ndarray) -> float:
    """Effective number of images: ``n`` for n equal weights, less where they are not (Kish)."""
    squares = float((weights_C**2).sum())
    return float(weights_C.sum()) ** 2 / squares if squares else 0.0


def midranks(scores_N: np.ndarray) -> np.ndarray:
    """Rank of each score from 1; equal scores share the mean of their ranks."""
    ordered = np.sort(scores_N)
    low, high = (np.searchsorted(ordered, scores_N, side) for side in ("left", "right"))
    return (low + high + 1) / 2


def auroc_of_rows(scores_BN: np.ndarray, positive_N: np.ndarray) -> np.ndarray:
    """AUROC ``B 1`` of rows of scores of the same items."""
    won = []
    for row in scores_BN:
        negative, positive = np.sort(row[~positive_N]), row[positive_N]
        below = [np.searchsorted(negative, positive, side).sum() for side in ("left", "right")]
        won.append(sum(below) / 2)
    pairs = positive_N.sum() * (~positive_N).sum()
    return np.array(won)[:, None] / pairs
