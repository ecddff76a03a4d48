"""Scores as functions of sums over items, so that a resample of images costs one sum an image.

A statistic gets arrays of sums ``[..., K]`` and gives ``[..., M]`` scores. Its columns are those of
an observation's rows, and behind them the number of items that count.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Sums = np.ndarray
"""Sums ``[..., K]`` of the columns of a statistic over some items."""


@dataclass(frozen=True)
class Statistic:
    """One kind of score.

    Attributes:
        columns: number of an observation's columns.
        value: sums -> scores.
        masses: sums of each image ``C K`` -> what each image adds to the counts ``C M`` that must
            not be few for an interval, one array for each such count.
        suffixes: endings of the names of its scores.
        unit: whether a score is between 0 and 1.
    """

    columns: int
    value: Callable[[Sums], np.ndarray]
    masses: Callable[[Sums], list[np.ndarray]]
    suffixes: tuple[str, ...] = ("",)
    unit: bool = True


def _ratio(sums: Sums) -> np.ndarray:
    """The sum of the first column over that of the second; of a mean that is the count."""
    total, count = sums[..., :1], sums[..., 1:2]
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _bleu(sums: Sums) -> np.ndarray:
    """BLEU-1 to BLEU-4 by pycocoevalcap's formula, with its guards against a division by 0.

    Columns: matching n-grams for n = 1 to 4, n-grams, words, words of the nearest references.
    """
    tiny, small = 1e-15, 1e-9
    products = np.cumprod((sums[..., :4] + tiny) / (sums[..., 4:8] + small), axis=-1)
    ratio = (sums[..., 8:9] + tiny) / (sums[..., 9:10] + small)
    with np.errstate(over="ignore"):
        brevity = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    return products ** (1 / np.arange(1, 5)) * brevity


_STAGES = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75


def _meteor(sums: Sums) -> np.ndarray:
    """METEOR 1.5 with its parameters for English (Denkowski and Lavie 2014, table 1).

    Columns, as its program writes them: words of the caption and the reference; their function
    words; for each of four matchers the matching content words of both and function words of both;
    chunks; matching words of both.
    """
    matches = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)  # matcher, word kind, side
    kinds = np.array([_DELTA, 1 - _DELTA])
    matched = np.einsum("...mks,m,k->...s", matches, _STAGES, kinds)
    length, function = sums[..., 0:2], sums[..., 2:4]
    size = _DELTA * (length - function) + (1 - _DELTA) * function
    found = sums[..., 21:23].sum(axis=-1) > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(matched / size, -1, 0)
        f_mean = 1 / (_ALPHA / recall + (1 - _ALPHA) / precision)
        fragments = sums[..., 20] / (sums[..., 21:23].sum(axis=-1) / 2)
        score = f_mean * (1 - _GAMMA * fragments**_BETA)
    return np.where(found, score, 0.0)[..., None]


def _no_sums(sums: Sums) -> np.ndarray:
    raise NotImplementedError("AUROC is no function of sums; see intervals.estimators")


STATISTICS: Mapping[str, Statistic] = {
    "fraction": Statistic(1, _ratio, lambda sums: [sums[:, :1], sums[:, 1:2] - sums[:, :1]]),
    "mean": Statistic(1, _ratio, lambda sums: [np.abs(sums[:, :1])], unit=False),
    "ratio": Statistic(
        2, _ratio, lambda sums: [np.abs(sums[:, :1]), np.abs(sums[:, 1:2])], unit=False
    ),
    "bleu": Statistic(10, _bleu, lambda sums: [sums[:, :4]], ("1", "2", "3", "4")),
    "meteor": Statistic(23, _meteor, lambda sums: [sums[:, 21:22]]),
    "auroc": Statistic(2, _no_sums, lambda sums: [sums[:, 1:2], sums[:, 2:3] - sums[:, 1:2]]),
}
"""Statistic by name. fraction: mean of numbers between 0 and 1. mean: mean of any numbers. ratio:
sum of the first number over that of the second. bleu, meteor: of sums of counts. auroc: of a score
and of whether it is a positive's (1) or not (0)."""
