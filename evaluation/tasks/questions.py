"""Visual question answering: each image is encoded once for all its questions.

Three runs of the same questions show how much a model sees: with the image; blind, with another
image (the score of knowledge without looking); and text only, with a true caption in place of the
image (the ceiling that the language model sets).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from evaluation.benchmarks.folder import Asked
from evaluation.benchmarks.records import ImageId, Question, QuestionSet
from evaluation.intervals.answers import observe_answers
from evaluation.notes import answer_notes, submission_notes, warn_of_empty
from evaluation.outputs import Outputs
from evaluation.scores.answers import (
    METRICS,
    Metric,
    leaves_one_out,
    matches_any,
    normalise_answer,
)
from evaluation.scores.gqa import gqa_scores
from evaluation.scores.means import GroupedMean, Mean
from evaluation.scores.predictions import require_predictions
from evaluation.tasks.base import Pass, Row, without_failed
from evaluation.tasks.batches import batches
from evaluation.tasks.captions import Encode, Generate
from evaluation.tasks.observing import with_items
from evaluation.tasks.scoring import Scoring

Prompt = Callable[[str], str]
"""A question -> the text after the visual prompt."""
Respond = Callable[[Tensor, Sequence[str]], list[str]]
"""Encoded images and a question for each -> an answer for each."""
Ask = Callable[[Question], str]
"""A question -> the text that ``Respond`` is given."""


def text_of(question: Question) -> str:
    """The question itself."""
    return question.text


@dataclass(frozen=True)
class Answerer:
    """A model that answers questions about images.

    Attributes:
        read: the language model alone, for the text-only control; None: there is no control.
        prompt: prompt of a question, for the text-only control.
        ask: text that ``respond`` is given for a question.
    """

    encode: Encode
    respond: Respond
    read: Generate | None = None
    prompt: Prompt = str
    ask: Ask = text_of


@dataclass(frozen=True)
class Asking:
    """One question as it is put to a model.

    Attributes:
        path: image that the model is shown; None: none.
        context: caption that the language model reads in place of the image.
    """

    question: Question
    path: Path | None
    context: str = ""

    def told(self) -> str:
        shown = self.path.name if self.path else ""
        return f"{self.question}\t{shown}\t{self.context}"

    def row_id(self) -> Row:
        return {"question_id": self.question.question_id}


def askings(questions: QuestionSet, name: str = "") -> Pass:
    """The pass in which each question is asked about its image."""
    asked = questions.questions
    items = [Asking(question, questions.images[question.image_id]) for question in asked]
    return Pass(name, items, [question.image_id for question in asked])


def readings(questions: QuestionSet, contexts: Mapping[ImageId, str]) -> Pass:
    """The pass of the text-only control: the language model reads a caption and no image.

    Raises:
        ValueError: an image that is asked about has no context.
    """
    asked = questions.questions
    require_predictions({q.image_id for q in asked}, contexts, "image's context")
    return Pass("text_only", [Asking(q, None, contexts[q.image_id]) for q in asked])


@dataclass(frozen=True)
class QuestionTask:
    """Questions that a model answers freely, or by a choice among candidates that all share.

    Attributes:
        asked: the questions, in the order of the results.
        name: name of the task, as its files begin.
        scoring: way of scoring.
        controls: whether to answer blind as well, and by text only where there are captions.
        seed: seed of the blind control.
        partial: reason why answers to a part of the split are lacking, so that no server would
            take them; empty: none are.
    """

    asked: Asked
    name: str = "vqa"
    split: str = "test"
    scoring: Scoring = field(default_factory=Scoring)
    controls: bool = True
    seed: int = 0
    partial: str = ""

    def passes(self, done: Mapping[str, list[Any]]) -> list[Pass]:
        """All questions with their image; those with references also blind and by text only."""
        passes = [askings(self.asked.questions)]
        answered = self.asked.questions.answered()
        if self.controls and len(answered.images) > 1:
            passes.append(askings(answered.shuffled(self.seed), "blind"))
        if self.controls and answered.questions and self.asked.contexts is not None:
            passes.append(readings(answered, self.asked.contexts))
        return passes

    def score(self, done: Mapping[str, list[Any]], out: Outputs) -> dict[str, Any]:
        """The scores of the answers to those questions that have references.

        Writes ``TASK_SPLIT_results.json`` in VQAv2's format, and the answers of both controls
        beside it (``TASK_SPLIT_blind_results.json``, ``TASK_SPLIT_text_only_results.json``); and
        ``TASK_SPLIT_submission.json`` where a server takes another format.

        Returns:
            The scores of ``score_answers``, the same of each control under ``blind`` and
            ``text_only``, metric: its name, empty: share of empty answers, notes; where the model
            chooses, candidates: their number, and within_reach: ``score_within_reach``.
        """
        scoring, answered = self.scoring, self.asked.questions.answered()
        predictions, failed = self._predictions("", done, out)
        if scoring.submission is not None and not failed and not self.partial:
            content = scoring.submission(self.asked.questions.questions, predictions)
            out.write_text(f"{self.name}_{self.split}_submission.json", content)
        empty, warnings = warn_of_empty([said["answer"] for said in predictions])
        notes = [*failed, *warnings, *submission_notes(self.partial)]
        notes += answer_notes(self.asked.questions, leaves_one_out(scoring.metric))
        notes += scoring.notes
        if not answered.questions:
            return {"count": 0, "empty": empty, "notes": notes}

        def score(rows: list[Row]) -> dict[str, Any]:
            given = {row["question_id"] for row in rows}
            return score_answers(answered.only(given), scoring.lemmas(rows), scoring.metric)

        scores = score(predictions)
        if self.asked.candidates:
            candidates = self.asked.candidates
            within_reach = score_within_reach(answered, candidates, METRICS[scoring.metric])
            scores |= {"candidates": len(candidates), "within_reach": within_reach}
        controls: dict[str, list[Row]] = {}
        for control in ("blind", "text_only"):
            if control in done:
                rows, failed = self._predictions(control, done, out)
                controls[control] = scoring.lemmas(rows)
                _add_control(scores, control, score(rows))
                notes += failed
        scores |= {"metric": scoring.metric, "empty": empty, "notes": notes}
        said = scoring.lemmas(predictions)
        observed = observe_answers(answered, said, controls, scoring.metric)
        return with_items(scores, [observed], out, self.name, self.split)

    def _predictions(
        self, what: str, done: Mapping[str, list[Any]], out: Outputs
    ) -> tuple[list[Row], list[str]]:
        """The rows of a pass, which it also writes, and a note where some are lacking."""
        rows, failed = without_failed(done[what], "questions")
        out.write("_".join(filter(None, (self.name, self.split, what, "results.json"))), rows)
        return rows, failed


def _add_control(scores: dict[str, Any], name: str, control: dict[str, Any]) -> None:
    scores[name] = control["accuracy"]
    if "exact_match" in control:
        scores[f"exact_match_{name}"] = control["exact_match"]
    for key, value in control.items():
        if key.startswith("by_"):
            scores[f"{key}_{name}"] = value


def answer_askings(
    items: Sequence[Asking],
    model: Answerer,
    batch_size: int = 64,
    image_batch_size: int = 64,
) -> list[Row]:
    """One answer a question, in VQAv2's format ``[{"question_id", "answer"}]`` and its order.

    An image is encoded once for all its questions, and at most ``image_batch_size`` encoded images
    are held at a time. Texts of similar length share a batch, so that little of it is padding.
    """
    answers: dict[ImageId, str] = {}
    texts = [item for item in items if item.path is None]
    texts.sort(key=lambda item: len(_reading(item, model)))
    for batch in batches(texts, batch_size):
        assert model.read is not None  # its task has a text-only control
        said = model.read(None, [_reading(item, model) for item in batch])
        answers |= _named(batch, said)
    of_image: dict[Path, list[Asking]] = {}
    for item in items:
        if item.path is not None:
            of_image.setdefault(item.path, []).append(item)
    for paths in batches(list(of_image), image_batch_size):
        encoded = model.encode(paths)
        rows = [(row, item) for row, path in enumerate(paths) for item in of_image[path]]
        rows.sort(key=lambda row: len(model.ask(row[1].question)))
        for asked in batches(rows, batch_size):
            said = model.respond(
                encoded[[row for row, _ in asked]], [model.ask(i.question) for _, i in asked]
            )
            answers |= _named([item for _, item in asked], said)
    order = [item.question.question_id for item in items]
    return [{"question_id": key, "answer": answers[key]} for key in order]


def _reading(item: Asking, model: Answerer) -> str:
    """The prompt of the text-only control."""
    return f"{item.context} {model.prompt(item.question.text)}"


def _named(items: Sequence[Asking], texts: Sequence[str]) -> dict[ImageId, str]:
    pairs = zip(items, texts, strict=True)
    return {item.question.question_id: text.strip() for item, text in pairs}


def score_answers(
    questions: QuestionSet, results: Sequence[Mapping[str, Any]], metric: str = "vqa.official"
) -> dict[str, Any]:
    """Accuracy overall and per question type and answer type, as fractions.

    Args:
        metric: name of the metric (``METRICS``).

    Returns:
        ``GroupedMean.as_dict``; with GQA's also the numbers of ``gqa_scores``; with VQA accuracy
        also ``exact_match``: share of answers that match
        any reference, and ``fewest_answers``: smallest number of references of a question.

    Raises:
        ValueError: a question has no prediction, or two, or no reference answer.
    """
    given: dict[ImageId, str] = {}
    for result in results:
        if result["question_id"] in given:
            raise ValueError(f"question {result['question_id']} has two predictions; keep one")
        given[result["question_id"]] = result["answer"]
    require_predictions((q.question_id for q in questions.questions), given, "question")
    mean, matching = GroupedMean(), Mean()
    for question in questions.questions:
        if not question.answers:
            raise ValueError(
                f"question {question.question_id} has no reference answers to score against; "
                "a test set without answers can be predicted but not scored"
            )
        if not question.balanced:
            continue
        groups = {"question_type": question.question_type, "answer_type": question.answer_type}
        score = METRICS[metric](given[question.question_id], question.answers)
        mean.add(score, **{kind: name for kind, name in groups.items() if name})
        matching.add(matches_any(given[question.question_id], question.answers))
    if metric.startswith("gqa."):
        normal = str if metric == "gqa.strict" else normalise_answer
        further = gqa_scores(questions.questions, given, METRICS[metric], normal)
        return mean.as_dict() | further
    if not leaves_one_out(metric):
        return mean.as_dict()
    fewest = min((len(question.answers) for question in questions.questions), default=0)
    return mean.as_dict() | {"exact_match": matching.value, "fewest_answers": fewest}


def score_within_reach(
    questions: QuestionSet, candidates: Sequence[str], metric: Metric = METRICS["vqa.official"]
) -> float:
    """The score of a model that always chooses the best candidate: the most that ranking can reach.

    Only candidates with the normal form of a reference answer can score.
    """
    of_form: dict[str, list[str]] = {}
    for candidate in candidates:
        of_form.setdefault(normalise_answer(candidate), []).append(candidate)
    mean = Mean()
    for question in questions.questions:
        forms = {normalise_answer(answer) for answer in question.answers}
        likely = [text for form in forms for text in of_form.get(form, ())]
        mean.add(max((metric(text, question.answers) for text in likely), default=0.0))
    return mean.value
