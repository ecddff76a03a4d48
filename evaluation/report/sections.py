"""The report's sections in their order, from the folders that the jobs wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.report.capfilt import capfilt_sections
from evaluation.report.evaluations import (
    Evaluated,
    answer_sections,
    caption_section,
    retrieval_section,
)
from evaluation.report.page import Section
from evaluation.report.training import arithmetic, curves
from pipeline.tinyworld.scene import Scene


def sections_of(
    capfilt: Sequence[Path],
    train: Sequence[Path],
    evaluations: Sequence[Evaluated],
    truth: Mapping[Path, Mapping[str, Scene]] | None = None,
) -> list[Section]:
    """The sections of all given folders, in the order of the pipeline.

    Args:
        truth: for a CapFilt output, the scene of each of its samples by key.
    """
    sections: list[Section] = []
    for out in capfilt:
        sections += capfilt_sections(out, (truth or {}).get(out))
    if train:
        sections += [arithmetic(train), curves(train)]
    for e in evaluations:
        sections += retrieval_section(e)
    return [*sections, *caption_section(evaluations), *answer_sections(evaluations)]
