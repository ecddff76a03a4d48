"""The report's comparisons: evaluations of the same questions, each against the first of them."""

from collections.abc import Sequence

from evaluation.compare import cells, compare_runs
from evaluation.intervals.pairs import Difference, NotComparable
from evaluation.report.changes import Change, Changes
from evaluation.report.evaluations import Evaluated
from evaluation.report.names import readable
from evaluation.results import shown

_LEVEL = 0.05


def comparison_sections(evaluations: Sequence[Evaluated], seed: int = 0) -> list[Changes]:
    """A section for each evaluation that has a task in common with an earlier one.

    Where two runs cannot be compared, such as over different questions, the section says why.
    """
    sections = []
    for place, second in enumerate(evaluations):
        for first in evaluations[:place]:
            if _scored(first) & _scored(second):
                sections.append(_section(first, second, seed))
                break
    return sections


def _scored(e: Evaluated) -> set[str]:
    """The tasks that have scores with intervals."""
    return {
        task
        for task, scores in e.results.items()
        if isinstance(scores, dict) and "intervals" in scores
    }


def _section(first: Evaluated, second: Evaluated, seed: int) -> Changes:
    names = first.folder.name, second.folder.name
    title = f"{names[1]} compared with {names[0]}"
    try:
        found = compare_runs(str(first.folder), str(second.folder), seed)
    except (NotComparable, FileNotFoundError) as reason:
        return Changes(title, *names, [], f"They were not compared. {reason}.")
    rows = [
        _change(task, one, printed)
        for task, of_task in found.tasks.items()
        for one, printed in zip(of_task, cells(task, of_task), strict=True)
        if one.score.partition(".")[0] in shown(first.results[task])
    ]
    note = (
        f"Both answered the same items. A difference is {names[1]} minus {names[0]}, with its 95 % "
        "interval; both are resampled by the same images. p is the probability of a difference as "
        "large if both were equally good, by swapping their results on random images; it is not "
        f"corrected for the number of scores: of 20 differences without a cause one has p below "
        f"{_LEVEL}. The bars have 0 in their middle."
    )
    return Changes(title, *names, rows, " ".join([note, *(f"{n}." for n in found.notes)]))


def _change(task: str, one: Difference, printed: Sequence[str]) -> Change:
    _, first, second, difference, interval, p = printed
    verdict = "not clear"
    if one.value == 0:
        verdict = "equal"
    elif one.p < _LEVEL:
        verdict = "higher" if one.value > 0 else "lower"
    name = readable(f"{task}.{one.score}")
    return Change(name, first, second, difference, interval, p, one.value, one.interval, verdict)
