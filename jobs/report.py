"""One HTML page over any of a run's folders: CapFilt outputs, training runs, evaluations.

    python jobs/report.py --capfilt OUT --train RUN RUN --eval DIR --out report.html

Nothing is computed again: the page shows what the stages wrote beside their results. Its first
screen has pictures with their captions, the headline scores, and what computed them. An evaluation
that was asked for a published row (``--table``, ``--row``) is shown beside that row; evaluations of
the same questions are compared in pairs.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

import tyro

from evaluation.report.comparisons import comparison_sections
from evaluation.report.evaluations import paper_sections, read_evaluation, scores
from evaluation.report.machine import hardware
from evaluation.report.overview import overview
from evaluation.report.page import Report, Section, write_report
from evaluation.report.sections import sections_of
from jobs.cli import run


@dataclass(frozen=True)
class ReportArgs:
    """Folders to show; each may be left out."""

    out: Path
    """HTML file to write"""
    capfilt: tuple[Path, ...] = ()
    """outputs of jobs/capfilt.py"""
    train: tuple[Path, ...] = ()
    """--out folders of the training jobs"""
    eval: tuple[Path, ...] = ()
    """--out folders of jobs/evaluate.py"""
    title: str = "Isthmus: a run"
    """heading of the page"""


def report(args: ReportArgs) -> int:
    """Write the page.

    Raises:
        ValueError, FileNotFoundError: no folder is given, or one is not what its option takes.
    """
    if not (args.capfilt or args.train or args.eval):
        raise ValueError("nothing to show: name at least one of --capfilt, --train, --eval")
    evaluations = [read_evaluation(folder) for folder in args.eval]
    sections: list[Section] = []
    if evaluations:
        sections += [*paper_sections(evaluations), scores(evaluations)]
        sections += comparison_sections(evaluations)
    sections += [*sections_of(args.capfilt, args.train, evaluations), hardware()]
    first = overview(sections, args.train, evaluations)
    write_report(args.out, Report(args.title, sections, overview=first))
    print(args.out)
    return 0


if __name__ == "__main__":
    run(lambda: report(tyro.cli(ReportArgs, description=__doc__)))
