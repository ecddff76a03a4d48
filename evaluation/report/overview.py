"""The report's first screen: what was made, what was measured, how long it took and on what."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.report.evaluations import Evaluated, caption_section
from evaluation.report.machine import cpu
from evaluation.report.names import readable
from evaluation.report.page import CapFilt, Captions, Overview, Result, Said, Section, format_number
from evaluation.report.pictures import Picture
from evaluation.report.training import saved_states
from evaluation.results import TASKS

_PICTURES = 4
_NUMBERS = 8
_HEADLINES = ("tr_r1", "ir_r1", "cider", "accuracy")


def overview(
    sections: Sequence[Section], train: Sequence[Path], evaluations: Sequence[Evaluated]
) -> Overview:
    """The first screen of a page over any folders: whatever of it they have.

    Args:
        sections: sections of the page; samples and counts of CapFilt are taken from them.
        train: folders of training runs.
        evaluations: folders of evaluations.
    """
    filtered = [section for section in sections if isinstance(section, CapFilt)]
    numbers = [
        Result(f"{s.title}, kept", f"{s.counts['kept']:,}", control=f"of {s.counts['pairs in']:,}")
        for s in filtered
    ]
    for e in evaluations:
        numbers += _headlines(e, several=len(evaluations) > 1)
    spent = ", ".join(
        f"{e.folder.name} {duration(sum(seconds.values()))}"
        for e in evaluations
        if (seconds := e.results.get("seconds"))
    )
    facts = ({"evaluation took": spent} if spent else {}) | arithmetic_facts(train)
    note, samples = captioned(evaluations)
    if not samples:
        note, samples = _filtered(filtered)
    return Overview(samples, numbers[:_NUMBERS], facts, note)


def _headlines(e: Evaluated, several: bool) -> list[Result]:
    """The headline scores of one evaluation; its name is said where there are several."""
    return [
        Result(
            readable(f"{task}.{key}") + (f", {e.folder.name}" if several else ""),
            float(e.results[task][key]),
            control=control(e.results[task], key),
            interval=e.interval(task, key),
        )
        for task in TASKS
        for key in _HEADLINES
        if isinstance(e.results.get(task, {}).get(key), int | float)
    ]


def captioned(evaluations: Sequence[Evaluated]) -> tuple[str, list[Said]]:
    """The first test images with the captions of the first evaluation that has any, and a note."""
    for e in evaluations:
        for section in caption_section([e]):
            if isinstance(section, Captions) and section.samples:
                note = f"The first test images, not selected, with captions by {e.folder.name}."
                return note, [
                    _said(
                        s.image, "the model says", s.generated.values(), "a reference", s.references
                    )
                    for s in section.samples[:_PICTURES]
                ]
    return "", []


def _filtered(outputs: Sequence[CapFilt]) -> tuple[str, list[Said]]:
    """Sampled images of CapFilt with the best kept caption beside the web caption, and a note."""
    said = []
    for sample in [sample for output in outputs for sample in output.samples]:
        web = [c.text for c in sample.captions if c.origin.startswith("web")]
        kept = [c.text for c in sample.captions if c.kept]
        if set(kept) - set(web):  # CapFilt wrote something itself
            said.append(_said(sample.image, "CapFilt keeps", kept, "the web caption", web))
    note = "Images drawn at random, with the captions of CapFilt." if said else ""
    return note, said[:_PICTURES]


def _said(
    image: Picture, source: str, texts: Iterable[str], other: str, others: Iterable[str]
) -> Said:
    """The first text of each of two sources on an image; a source without texts is left out."""
    first = {source: next(iter(texts), None), other: next(iter(others), None)}
    return Said(image, {name: text for name, text in first.items() if text is not None})


def control(scores: Mapping[str, Any], metric: str) -> str:
    """The control or the size that a headline score is read against, in words; else empty."""
    for metrics, key, words in (
        (("tr_r1", "ir_r1"), "chance", "chance"),
        (("cider",), "shuffled_cider", "same captions, shuffled"),
        (("accuracy",), "blind", "blind"),
        (("right_before", "right_after"), "samples", "pairs audited"),
    ):
        if metric in metrics and scores.get(key) is not None:
            return f"{words}: {format_number(scores[key])}"
    return ""


def arithmetic_facts(train: Sequence[Path], here: bool = False) -> dict[str, str]:
    """The processors that runs were trained on and their number formats.

    Args:
        train: folders of training runs; one without a checkpoint says nothing.
        here: whether they were trained on this machine, so that its CPU is named in full.
    """
    states = [state for state in saved_states(train).values() if state.get("precision")]
    processors = dict.fromkeys(
        cpu() if here and state["processor"].startswith(platform.machine()) else state["processor"]
        for state in states
    )
    rows = {"computed on": " and ".join(processors), "precision": _formats(states)}
    return {name: value for name, value in rows.items() if value}


def _formats(states: Sequence[Mapping[str, Any]]) -> str:
    """The number formats of runs in words: one name where all parts of all runs have the same."""
    parts: dict[str, dict[str, None]] = {}
    for state in states:
        for part, dtype in state["precision"].items():
            parts.setdefault(part, {})[dtype] = None
    names = {dtype for dtypes in parts.values() for dtype in dtypes}
    if len(names) == 1:
        return f"{names.pop()} ({', '.join(parts)})"
    return ", ".join(f"{part} {' and '.join(dtypes)}" for part, dtypes in parts.items())


def duration(seconds: float) -> str:
    """A duration in words: seconds up to two minutes, minutes above."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
