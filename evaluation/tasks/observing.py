"""The last step of scoring: the items behind the scores are written, and intervals added."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.intervals.items import dumps, items_name
from evaluation.intervals.observed import Observed
from evaluation.intervals.scores import with_intervals
from evaluation.outputs import Outputs


def with_items(
    scores: Mapping[str, Any], observed: Sequence[Observed], out: Outputs, task: str, split: str
) -> dict[str, Any]:
    """The scores of a task with their 95 % intervals.

    Writes ``TASK_SPLIT_items.json``, from which two runs are compared (``evaluation.compare``).

    Args:
        observed: what the scores were computed from.
    """
    out.write_text(items_name(task, split), dumps(observed))
    return with_intervals(scores, observed)
