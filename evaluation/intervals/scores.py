"""The intervals in the results of a task."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evaluation.intervals.bootstrap import (
    CONSTANT,
    FEW,
    FEWEST,
    RESAMPLES,
    ROUGH,
    Estimate,
    estimate,
)
from evaluation.intervals.observed import Observed

METHOD = f"95 % intervals by {RESAMPLES:,} resamples of images"
_NAMED = 5
_REASONS = {
    FEW: f"no interval for {{}}: an interval needs {FEWEST} images that count",
    CONSTANT: "no interval for {}: all images have the same score",
    ROUGH: f"the interval of {{}} is rough: fewer than {FEWEST} images have a right answer, or a "
    "wrong one",
}


def with_intervals(
    scores: Mapping[str, Any], observed: Iterable[Observed], seed: int = 0
) -> dict[str, Any]:
    """The scores of a task, with ``intervals`` and notes on those that are lacking or rough.

    Args:
        scores: scores by name, some of them in mappings of their own (``by_question_type``).
        observed: what the scores were computed from. Observed scores that the results do not show
            get no interval.
        seed: seed of the resamples.

    Returns:
        The scores, and ``intervals``: ``[low, high]`` by the name of the score, with dots for
        mappings (``by_question_type.what color``).
    """
    shown = [
        one
        for part in observed
        for one in estimate(part, seed)
        if isinstance(score_of(scores, one), int | float)
    ]
    sure, notes = [], [*scores.get("notes", [])]
    for one in shown:
        said = float(score_of(scores, one))
        if abs(one.value - said) <= 1e-6 * max(1.0, abs(said)):
            sure.append(one)
        else:  # a fault of ours; it must not cost the scores
            notes.append(f"no interval for {name_of(one)}: it is {said:.6g}, and {one.value:.6g} "
                         "when computed from its items")  # fmt: skip
    intervals = {name_of(one): list(one.interval) for one in sure if one.interval is not None}
    notes += interval_notes(sure)
    return {**scores, "intervals": intervals, "notes": notes}


def name_of(one: Estimate) -> str:
    """The dotted name of a score, with its group."""
    return ".".join(part for part in one.name if part)


def score_of(scores: Mapping[str, Any], one: Estimate) -> Any:
    """The score in the results; None: they do not have it."""
    name, group = one.name
    found: Any = scores
    for part in [*name.split("."), *([group] if group else [])]:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def interval_notes(estimates: Sequence[Estimate]) -> list[str]:
    """A note for each reason for which intervals are lacking or rough."""
    notes = []
    for reason, text in _REASONS.items():
        names = [name_of(one) for one in estimates if one.reason == reason]
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            notes.append(text.format(", ".join(names[:_NAMED]) + more))
    return notes
