"""Scores of a file of predictions: of another model, of another machine, of an earlier run.

The file is what ``jobs/evaluate.py`` writes as ``TASK_SPLIT_results.json`` and what VQAv2's and
COCO's servers take: a list of ``{"question_id", "answer"}`` or ``{"image_id", "caption"}``. The
rows of a task with candidates have their ``scores`` too.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.storage.base import as_url
from evaluation.benchmarks.fields import read_json
from evaluation.images.remote import local_data
from evaluation.outputs import Outputs
from evaluation.report.machine import commit
from evaluation.tasks.base import Row
from evaluation.tasks.captions import CaptionTask
from evaluation.tasks.choices import ChoiceTask
from evaluation.tasks.questions import QuestionTask
from jobs.evaluation.arguments import EvaluateArgs
from jobs.evaluation.suite import folders_of
from jobs.evaluation.tasks import make_task, read_data


def score_predictions(args: EvaluateArgs) -> dict[str, Any]:
    """Score the file of ``--predictions``; returns ``results.json``'s content, and writes it.

    Raises:
        ValueError: the task takes no file of predictions; the file is not what it must be, or a
            prediction is missing, doubled or of an unknown id.
        FileNotFoundError: the file or the data are not there.
    """
    (name,) = args.tasks
    path = args.work.predictions
    assert path is not None
    here = replace(args, data=local_data(args.data, folders_of(args)))
    data = read_data(here, name)
    task = make_task(data, path.stem)
    if isinstance(task, CaptionTask):
        key, value = "image_id", "caption"
    elif isinstance(task, ChoiceTask):
        key, value = "question_id", "scores"
    elif isinstance(task, QuestionTask):
        key, value = "question_id", "answer"
    else:
        raise ValueError(f"--predictions: {name} takes no file of predictions")
    (main, *_) = task.passes({})
    wanted = [item.row_id()[key] for item in main.items]
    rows = _checked(path, key, value, wanted)
    out = Outputs(as_url(args.out) if args.out is not None else None)
    scores = task.score({"": rows}, out) | {"split": data.split}
    results = {
        "predictions": str(path),
        "data": str(args.data),
        "split": data.split,
        "commit": commit(),
        name: scores,
    }
    out.write("results.json", results, indent=1)
    return results


def _checked(path: Path, key: str, value: str, wanted: list[Any]) -> list[Row]:
    """The rows of a file in the order of the items; ids may be numbers or the same as text.

    Raises:
        ValueError, FileNotFoundError: as ``score_predictions``.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: a file of predictions is a list of objects")
    for number, row in enumerate(rows):
        if key not in row or value not in row:
            raise ValueError(f"{path}: entry {number} lacks {key if key not in row else value}")
    counts = Counter(str(row[key]) for row in rows)
    doubled = [found for found, times in counts.items() if times > 1]
    if doubled:
        raise ValueError(
            f"{path}: {key} {doubled[0]} has {counts[doubled[0]]} predictions; keep one"
        )
    by_id = {str(row[key]): row for row in rows}
    unknown = sorted(by_id.keys() - set(map(str, wanted)))
    if unknown:
        raise ValueError(
            f"{path}: {key} {unknown[0]} is not in the data ({len(unknown)} unknown of "
            f"{len(rows)}); the file belongs to another split or version"
        )
    missing = [found for found in wanted if str(found) not in by_id]
    if missing:
        raise ValueError(
            f"{path}: no prediction for {key} {missing[0]} ({len(missing)} missing of "
            f"{len(wanted)}); every one needs exactly one"
        )
    return [by_id[str(found)] | {key: found} for found in wanted]
