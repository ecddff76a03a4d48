"""Files of predictions as the benchmarks' servers and scorers take them.

VQAv2, OK-VQA and TextVQA take ``[{"question_id", "answer"}]``, COCO and NoCaps ``[{"image_id",
"caption"}]``: these are the results files themselves. The writers here are for the others. They
take the rows of a results file: ``question_id``, ``answer``, and for choices ``scores``, a number
for each candidate.

A server refuses a file in which an id of the split is missing (VQAv2's test-std takes all 447,793
or none), and so does ``require_complete``, before anybody waits for a server to say so.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from evaluation.benchmarks.records import ImageId, Question
from evaluation.scores.choices import probability
from evaluation.scores.dialog import all_ranks
from evaluation.scores.predictions import require_predictions

Rows = Sequence[Mapping[str, Any]]
Submission = Callable[[Sequence[Question], Rows], str]
"""The questions and the rows of their predictions -> the content of the file."""


class PartialSubmission(ValueError):
    """Predictions that are not those of a whole split."""


def require_complete(
    split: Iterable[ImageId], predicted: Iterable[ImageId], what: str = "question"
) -> None:
    """Refuse the predictions of a part of a split, such as those made with ``--limit``.

    Args:
        split: the id of every question, or image, of the split.
        predicted: ids of the predictions; 7 and "7" are one id, since servers and files mix them.
        what: noun for the messages: ``question`` or ``image``.

    Raises:
        PartialSubmission: an id of the split has no prediction or several, or a prediction has an
            id that the split does not have; names the first of them.
    """
    wanted = list(dict.fromkeys(map(str, split)))
    given = Counter(map(str, predicted))
    missing = [key for key in wanted if key not in given]
    if missing:
        raise PartialSubmission(
            f"no submission: of the split's {len(wanted)} {what}s {_name(missing)} lack a "
            "prediction, and a server takes all or none; leave out --limit and --skip-unreadable"
        )
    doubled = [key for key, times in given.items() if times > 1]
    if doubled:
        raise PartialSubmission(
            f"no submission: {what}s with several predictions: {_name(doubled)}"
        )
    known = set(wanted)
    unknown = [key for key in given if key not in known]
    if unknown:
        raise PartialSubmission(f"no submission: {what}s that the split lacks: {_name(unknown)}")


def _name(keys: Sequence[str]) -> str:
    """The number of the ids, and the first of them."""
    return f"{len(keys)} ({', '.join(keys[:3])}{', …' if keys[3:] else ''})"


def gqa(questions: Sequence[Question], rows: Rows) -> str:
    """``[{"questionId": text, "prediction"}]``."""
    return _json(
        {"questionId": str(question.question_id), "prediction": row["answer"]}
        for question, row in _joined(questions, rows)
    )


def vizwiz(questions: Sequence[Question], rows: Rows) -> str:
    """``[{"image": file name, "answer"}]`` (EvalAI, challenge 2185)."""
    joined = _joined(questions, rows)
    return _json({"image": q.image_id, "answer": row["answer"]} for q, row in joined)


def aokvqa_direct(questions: Sequence[Question], rows: Rows) -> str:
    """``{question id: {"direct_answer"}}``."""
    joined = _joined(questions, rows)
    return _json({q.question_id: {"direct_answer": row["answer"]} for q, row in joined})


def aokvqa_choice(questions: Sequence[Question], rows: Rows) -> str:
    """``{question id: {"multiple_choice"}}``; the answer is the text of a choice."""
    joined = _joined(questions, rows)
    return _json({q.question_id: {"multiple_choice": row["answer"]} for q, row in joined})


def choice_index(questions: Sequence[Question], rows: Rows) -> str:
    """``{"results": {question id: index}}`` (ScienceQA, IconQA)."""
    joined = _joined(questions, rows)
    results = {str(q.question_id): q.candidates.index(row["answer"]) for q, row in joined}
    return _json({"results": results})


def visdial(questions: Sequence[Question], rows: Rows) -> str:
    """``[{"image_id", "round_id", "ranks"}]``: rounds from 1, the rank of each of 100 options."""
    return _json(
        {
            "image_id": question.image_id,
            "round_id": int(str(question.question_id).rpartition("-")[2]),
            "ranks": all_ranks(row["scores"]),
        }
        for question, row in _joined(questions, rows)
    )


def hatefulmemes(questions: Sequence[Question], rows: Rows) -> str:
    """CSV with ``id,proba,label``: probability that the meme is hateful, and 1 from one half on."""
    lines = ["id,proba,label"]
    for question, row in _joined(questions, rows):
        hateful = probability(*row["scores"])
        lines.append(f"{question.question_id},{hateful:.6f},{int(hateful >= 0.5)}")
    return "\n".join(lines) + "\n"


def _joined(
    questions: Sequence[Question], rows: Rows
) -> Iterator[tuple[Question, Mapping[str, Any]]]:
    """Each question with its row.

    Raises:
        ValueError: a question has no row.
    """
    by_id = {row["question_id"]: row for row in rows}
    require_predictions((question.question_id for question in questions), by_id, "question")
    return ((question, by_id[question.question_id]) for question in questions)


def _json(content: Any) -> str:
    if isinstance(content, Iterator):
        content = list(content)
    return json.dumps(content, ensure_ascii=False) + "\n"
