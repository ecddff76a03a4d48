"""Scores of answers that a judge compared with a reference (LLaVA-Bench)."""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean

LOWEST, HIGHEST = 1.0, 10.0
Pair = tuple[float, float]
"""The judge's numbers for the reference and for the model."""


def parse_verdict(text: str) -> Pair | None:
    """The two numbers on the first line of a verdict; None: there are not just two, from 1 to 10.

    >>> parse_verdict("8 7.5\\nBoth are right."), parse_verdict("Assistant 1 is better.")
    ((8.0, 7.5), None)
    """
    words = re.split(r"[,\s]+", text.strip().partition("\n")[0].strip())
    if len(words) != 2:
        return None
    try:
        first, second = map(float, words)
    except ValueError:
        return None
    inside = all(LOWEST <= number <= HIGHEST for number in (first, second))  # not so for nan
    return (first, second) if inside else None


def relative_score(pairs: Sequence[Pair]) -> float:
    """The model's mean over the reference's: a ratio of means, not a mean of ratios."""
    return fmean(pair[1] for pair in pairs) / fmean(pair[0] for pair in pairs)


def judged_scores(pairs: Mapping[str, Sequence[Pair]]) -> dict[str, object]:
    """The scores of all questions from the judge's numbers by category.

    Returns:
        relative: the relative score of all questions. model, reference: means of the judge's
        numbers. count. by_question_type: relative scores by category. No more than the count where
        there are no numbers.
    """
    together = [pair for of_one in pairs.values() for pair in of_one]
    if not together:
        return {"count": 0}
    return {
        "relative": relative_score(together),
        "model": fmean(pair[1] for pair in together),
        "reference": fmean(pair[0] for pair in together),
        "count": len(together),
        "by_question_type": {
            name: relative_score(pairs[name]) for name in sorted(pairs) if pairs[name]
        },
    }
