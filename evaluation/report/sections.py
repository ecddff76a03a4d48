"""The report's sections in their order, from the folders that the jobs wrote."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from evaluation.report.capfilt import capfilt_sections
from evaluation.report.evaluations import (
    Evaluated,
    answer_sections,
    caption_section,
    retrieval_section,
)
from evaluation.report.page import Facts, Section
from evaluation.report.training import arithmetic, curves
from pipeline.tinyworld.scene import Scene

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "deepspeed", "transformers", "timm", "ray", "webdataset")


def hardware() -> Facts:
    """Commit, machine and package versions of this process."""
    command = ["git", "describe", "--always", "--dirty"]
    git = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    rows = {
        "commit": git.stdout.strip() or "not a git clone",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
    }
    return Facts("What ran", rows | {name: version(name) for name in _PACKAGES})


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
