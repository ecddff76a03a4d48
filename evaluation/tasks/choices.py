"""Questions that are answered by the likeliest of their candidates.

The model gives the log-probability of every candidate after the image and the prompt; the scores
of a benchmark (accuracy, AUROC, the ranks of VisDial) follow from these numbers alone. The files
keep them, so that a score can be computed again without a model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Protocol

from evaluation.benchmarks.catalogue import Benchmark
from evaluation.benchmarks.prompts import Prompt
from evaluation.benchmarks.records import Question, QuestionSet
from evaluation.benchmarks.submissions import Submission
from evaluation.intervals.answers import observe_choices
from evaluation.notes import submission_notes
from evaluation.outputs import Outputs
from evaluation.scores.choices import (
    auroc,
    check_scores,
    choice_accuracy,
    log_sum_exp,
    probability,
)
from evaluation.scores.dialog import is_tied, ndcg, rank_metrics, rank_of
from evaluation.scores.means import GroupedMean
from evaluation.scores.predictions import require_predictions
from evaluation.tasks.base import Pass, Row, without_failed
from evaluation.tasks.batches import batches
from evaluation.tasks.observing import with_items

Length = Literal["sum", "mean"]
"""Score of a candidate: the sum of its tokens' log-probabilities, or their mean."""


class Ranked(Protocol):
    """The candidates of one prompt as a model sees them."""

    @property
    def log_probs(self) -> Sequence[float]:
        """Sum of the log-probabilities of each candidate's tokens."""

    @property
    def tokens(self) -> Sequence[int]:
        """Number of tokens of each candidate."""


Rank = Callable[[Sequence[Path], Sequence[str], Sequence[Sequence[str]]], Sequence[Ranked]]
"""Image files, a prompt for each and candidates for each -> the candidates' log-probabilities.

One image may occur several times, in a row.
"""


@dataclass(frozen=True)
class Choosing:
    """The way in which candidates are asked for, scored and handed in.

    Attributes:
        prompt: prompt of a question.
        metric: accuracy; auroc, of the second candidate's probability; or dialog (VisDial).
        verbalisers: texts whose probabilities add up to that of a candidate; a candidate that is
            not here stands for itself.
        length: score of a text: sum or mean of its tokens' log-probabilities.
        submission: writer of the server's file; None: none is written.
        suffix: ending of the server's file.
    """

    prompt: Prompt
    metric: str = "accuracy"
    verbalisers: Mapping[str, tuple[str, ...]] | None = None
    length: Length = "sum"
    submission: Submission | None = None
    suffix: str = ".json"


def choosing_of(benchmark: Benchmark, length: Length = "sum") -> Choosing:
    """The way of a benchmark of the catalogue."""
    return Choosing(
        benchmark.prompt,
        benchmark.metric,
        benchmark.verbalisers,
        length,
        benchmark.submission,
        benchmark.suffix,
    )


@dataclass(frozen=True)
class Choice:
    """One question as its candidates are ranked.

    Attributes:
        path: image that the model is shown.
    """

    question: Question
    path: Path

    def told(self) -> str:
        return f"{self.question}\t{self.path.name}"

    def row_id(self) -> Row:
        return {"question_id": self.question.question_id}


def choices(questions: QuestionSet, name: str = "") -> Pass:
    """The pass in which the candidates of each question are ranked behind its image."""
    asked = questions.questions
    items = [Choice(question, questions.images[question.image_id]) for question in asked]
    return Pass(name, items, [question.image_id for question in asked])


@dataclass(frozen=True)
class ChoiceTask:
    """Questions that are answered by the likeliest of their own candidates.

    Attributes:
        questions: the questions, in the order of the results.
        choosing: way in which candidates are asked for, scored and handed in.
        name: name of the task, as its files begin.
        controls: whether to ask about the pictures of other images as well.
        seed: seed of the blind control.
        partial: reason why answers to a part of the split are lacking, so that no server would
            take them; empty: none are.
    """

    questions: QuestionSet
    choosing: Choosing
    name: str
    split: str = "test"
    controls: bool = True
    seed: int = 0
    partial: str = ""

    def passes(self, done: Mapping[str, list[Any]]) -> list[Pass]:
        """All questions with their image; those whose right candidate is known also blind."""
        passes = [choices(self.questions)]
        answered = self.questions.answered()
        if self.controls and len(answered.images) > 1:
            passes.append(choices(answered.shuffled(self.seed), "blind"))
        return passes

    def score(self, done: Mapping[str, list[Any]], out: Outputs) -> dict[str, Any]:
        """The scores of those questions whose right candidate is known.

        Writes ``TASK_SPLIT_results.json`` (rows of ``choose``), the same of the blind control, and
        ``TASK_SPLIT_submission.json`` or ``.csv`` where there is a server's format.

        Returns:
            The scores of ``score_choices``, the first of them for the control under ``blind``,
            metric: its name, and notes.
        """
        choosing, answered = self.choosing, self.questions.answered()
        rows, notes = self._rows("", done, out)
        if choosing.submission is not None and not notes and not self.partial:
            content = choosing.submission(self.questions.questions, rows)
            out.write_text(f"{self.name}_{self.split}_submission{choosing.suffix}", content)
        notes += submission_notes(self.partial)
        asked, known = len(self.questions.questions), len(answered.questions)
        if not known:
            notes.append("nothing was scored: no question has a known right candidate")
            return {"count": 0, "metric": choosing.metric, "notes": notes}

        def score(rows: list[Row]) -> dict[str, Any]:
            given = {row["question_id"] for row in rows}
            return score_choices(answered.only(given), rows, choosing.metric)

        scores, controls = score(rows), dict[str, list[Row]]()
        if "blind" in done:
            controls["blind"], failed = self._rows("blind", done, out)
            scores["blind"] = next(iter(score(controls["blind"]).values()))
            notes += failed
        notes += scores.get("notes", [])
        if known < asked:
            notes.append(f"{asked - known} of {asked} questions have no known right candidate; "
                         "they were ranked and not scored")  # fmt: skip
        scores |= {"metric": choosing.metric, "notes": notes}
        observed = observe_choices(answered, rows, controls, choosing.metric)
        return with_items(scores, [observed], out, self.name, self.split)

    def _rows(
        self, what: str, done: Mapping[str, list[Any]], out: Outputs
    ) -> tuple[list[Row], list[str]]:
        """The rows of a pass, which it also writes, and a note where some are lacking."""
        rows, failed = without_failed(done[what], "questions")
        out.write("_".join(filter(None, (self.name, self.split, what, "results.json"))), rows)
        return rows, failed


def choose(
    items: Sequence[Choice], rank: Rank, choosing: Choosing, batch_size: int = 64
) -> list[Row]:
    """A row ``{"question_id", "answer", "scores", "tokens"}`` for each question, in their order.

    The answer is the likeliest candidate, the first of several. Scores are log-probabilities, one
    for each candidate; tokens are the lengths of the texts that were ranked. Questions about one
    image follow each other, so that it is encoded once.

    Raises:
        ValueError: a question has no candidates, or the scores of one are not what they must be.
    """
    of_image: dict[Path, list[int]] = {}
    for place, item in enumerate(items):
        of_image.setdefault(item.path, []).append(place)
    order = [place for places in of_image.values() for place in places]
    rows: dict[int, Row] = {}
    for places in batches(order, batch_size):
        batch = [items[place] for place in places]
        texts = [_texts(item.question, choosing.verbalisers) for item in batch]
        prompts = [choosing.prompt(item.question) for item in batch]
        flat = [[text for of_one in of_each for text in of_one] for of_each in texts]
        ranked = rank([item.path for item in batch], prompts, flat)
        for place, item, of_each, one in zip(places, batch, texts, ranked, strict=True):
            rows[place] = _row(item.question, of_each, one, choosing.length)
    return [rows[place] for place in range(len(items))]


def score_choices(
    questions: QuestionSet, rows: Sequence[Mapping[str, Any]], metric: str = "accuracy"
) -> dict[str, Any]:
    """The scores of questions whose right candidate is known, from the rows of ``choose``.

    Returns:
        accuracy: accuracy, by question type. auroc: auroc, and the accuracy at one half. dialog:
        mrr, r1, r5, r10, mean_rank, ndcg where relevances are known, ndcg_count. And ``count``.

    Raises:
        ValueError: a question has no row, or two.
    """
    by_id = {row["question_id"]: row["scores"] for row in rows}
    if len(by_id) < len(rows):
        raise ValueError("a question has two predictions; keep one")
    require_predictions((q.question_id for q in questions.questions), by_id, "question")
    known = [(q, by_id[q.question_id]) for q in questions.questions if q.correct is not None]
    for question, scores in known:
        check_scores(scores, len(question.candidates))
    return _SCORERS[metric](known)


_Known = Sequence[tuple[Question, Sequence[float]]]


def _accuracy(known: _Known) -> dict[str, Any]:
    mean = GroupedMean()
    for question, scores in known:
        groups = {"question_type": question.question_type} if question.question_type else {}
        mean.add(choice_accuracy(scores, _right(question)), **groups)
    return mean.as_dict()


def _auroc(known: _Known) -> dict[str, Any]:
    accuracy = _accuracy(known)
    positive = [_right(question) == 1 for question, _ in known]
    if len(set(positive)) == 1:
        note = "AUROC is left out: it needs both classes, and all questions are of one"
        return accuracy | {"notes": [note]}
    likely = [probability(*scores) for _, scores in known]
    return {"auroc": auroc(likely, positive)} | accuracy


def _dialog(known: _Known) -> dict[str, Any]:
    metrics: dict[str, Any] = rank_metrics([rank_of(scores, _right(q)) for q, scores in known])
    gains = [ndcg(scores, q.relevance) for q, scores in known if any(q.relevance)]
    if gains:
        metrics |= {"ndcg": fmean(gains), "ndcg_count": len(gains)}
    tied = sum(is_tied(scores, _right(question)) for question, scores in known)
    notes = []
    if tied:
        notes.append(
            f"in {tied} of {len(known)} rounds the right option has the score of another, and "
            "counts as half of them better"
        )
    return metrics | {"count": len(known), "notes": notes}


_SCORERS: Mapping[str, Callable[[_Known], dict[str, Any]]] = {
    "accuracy": _accuracy,
    "auroc": _auroc,
    "dialog": _dialog,
}


def _right(question: Question) -> int:
    assert question.correct is not None  # the questions were selected so
    return question.correct


def _texts(
    question: Question, verbalisers: Mapping[str, tuple[str, ...]] | None
) -> list[tuple[str, ...]]:
    """The texts that stand for each candidate."""
    if not question.candidates:
        raise ValueError(f"question {question.question_id} has no candidates to choose from")
    return [(verbalisers or {}).get(text, (text,)) for text in question.candidates]


def _row(
    question: Question, texts: Sequence[Sequence[str]], ranked: Ranked, length: Length
) -> dict[str, Any]:
    """The row of a question from the log-probability of each of its texts."""
    check_scores(ranked.log_probs, sum(map(len, texts)))
    pairs = zip(ranked.log_probs, ranked.tokens, strict=True)
    left = iter([total / n if length == "mean" else float(total) for total, n in pairs])
    scores = [log_sum_exp([next(left) for _ in of_one]) for of_one in texts]
    answer = question.candidates[scores.index(max(scores))]
    row = {"question_id": question.question_id, "answer": answer, "scores": scores}
    return row | {"tokens": list(ranked.tokens)}
