"""The mix of many data sets: shares in proportion to the square roots of their sizes.

Plain proportions would show almost nothing but the largest set, equal ones would repeat the
smallest too often (InstructBLIP, arXiv:2305.06500, section 2.4).
"""

import math
from collections.abc import Sequence

from pipeline.instructions.config import InstructionConfig
from pipeline.shards.reading import Shards

PRECISION = 1000  # weights are integers; the root of one sample counts as this


def weights_of(sources: Sequence[Shards], config: InstructionConfig) -> list[int]:
    """An integer for each source, in proportion to its share of the draws."""
    factors = dict(config.weight_factors)
    return [
        max(1, round(PRECISION * factors.get(source.name, 1.0) * _base(sum(source.sizes), config)))
        for source in sources
    ]


def describe(sources: Sequence[Shards], config: InstructionConfig) -> list[str]:
    """The mix as lines for the start of a run: size, share and factor of each source."""
    weights, factors = weights_of(sources, config), dict(config.weight_factors)
    by = "square root of size" if config.balance == "root" else "size"
    lines = [f"mix of {len(sources)} data sets, by {by}:"]
    for source, weight in zip(sources, weights, strict=True):
        factor = factors.get(source.name, 1.0)
        told = "" if factor == 1 else f", times {factor:g} (our choice: the paper states none)"
        share = 100 * weight / sum(weights)
        lines.append(f"  {source.name}: {sum(source.sizes):,} samples, {share:.1f} %{told}")
    return lines


def _base(size: int, config: InstructionConfig) -> float:
    return math.sqrt(size) if config.balance == "root" else float(size)
