"""Visual question answering: each image is encoded once for all its questions.

Three runs of the same questions show how much a model sees: with the image; blind, with another
image (the score of knowledge without looking); and text only, with a true caption in place of the
image (the ceiling that the language model sets).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from tqdm import tqdm

from evaluation.benchmarks.folder import Asked
from evaluation.benchmarks.records import ImageId, Question, QuestionSet
from evaluation.caption import Encode, Generate
from evaluation.notes import answer_notes, warn_of_empty
from evaluation.outputs import Keep, Outputs, keep_nothing
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
from evaluation.scoring import Scoring
from evaluation.work import chunks

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
        read: the language model alone, for the text-only control.
        prompt: prompt of a question, for the text-only control.
        remedy: advice for the user where most answers are empty.
        ask: text that ``respond`` is given for a question.
    """

    encode: Encode
    respond: Respond
    read: Generate
    prompt: Prompt
    remedy: str = ""
    ask: Ask = text_of


def evaluate_questions(
    asked: Asked,
    model: Answerer,
    out: Outputs,
    *,
    task: str = "vqa",
    scoring: Scoring | None = None,
    split: str = "test",
    batch_size: int = 64,
    controls: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Answer the questions, and score the answers to those that have references.

    Writes ``TASK_SPLIT_results.json`` in VQAv2's format, and the answers of both controls beside
    it (``TASK_SPLIT_blind_results.json``, ``TASK_SPLIT_text_only_results.json``); and
    ``TASK_SPLIT_submission.json`` where a server takes another format.

    Args:
        task: name of the task, as its files begin.
        scoring: way of scoring; None: official VQA accuracy.
        controls: also answer blind, and by text only where there are captions.
        seed: seed of the blind control.

    Returns:
        The scores of ``score_answers``, the same of each control under ``blind`` and ``text_only``,
        metric: its name, empty: share of empty answers, notes; where the model chooses, candidates:
        their number, and within_reach: ``score_within_reach``.
    """
    scoring = scoring or Scoring()
    questions, answered = asked.questions, asked.questions.answered()

    def run(what: str, predict: Callable[..., list[dict[str, Any]]]) -> list[dict[str, Any]]:
        name = "_".join(filter(None, (task, split, what, "results.json")))
        return out.predictions(name, lambda keep: predict(keep=keep, batch_size=batch_size))

    def look(questions: QuestionSet, what: str) -> list[dict[str, Any]]:
        title = f"{task} {what}".strip()
        models = (model.encode, model.respond)
        return run(what, partial(answer_questions, questions, *models, title=title, ask=model.ask))

    def score(predictions: list[dict[str, Any]]) -> dict[str, Any]:
        return score_answers(answered, scoring.lemmas(predictions), scoring.metric)

    predictions = look(questions, "")
    empty, warnings = warn_of_empty([said["answer"] for said in predictions], model.remedy)
    if scoring.submission is not None:
        content = scoring.submission(questions.questions, predictions)
        out.write_text(f"{task}_{split}_submission.json", content)
    notes = [*warnings, *answer_notes(questions, leaves_one_out(scoring.metric)), *scoring.notes]
    if not answered.questions:
        return {"count": 0, "empty": empty, "notes": notes}
    scores = score(predictions)
    if asked.candidates:
        within_reach = score_within_reach(answered, asked.candidates, METRICS[scoring.metric])
        scores |= {"candidates": len(asked.candidates), "within_reach": within_reach}
    if controls and len(answered.images) > 1:
        blind = look(answered.shuffled(seed), "blind")
        _add_control(scores, "blind", score(blind))
    if controls and asked.contexts is not None:
        read = partial(answer_from_text, answered, asked.contexts, model.read, model.prompt)
        told = run("text_only", read)
        _add_control(scores, "text_only", score(told))
    return scores | {"metric": scoring.metric, "empty": empty, "notes": notes}


def _add_control(scores: dict[str, Any], name: str, control: dict[str, Any]) -> None:
    scores[name] = control["accuracy"]
    if "exact_match" in control:
        scores[f"exact_match_{name}"] = control["exact_match"]
    for key, value in control.items():
        if key.startswith("by_"):
            scores[f"{key}_{name}"] = value


def answer_questions(
    questions: QuestionSet,
    encode: Encode,
    respond: Respond,
    *,
    batch_size: int = 64,
    image_batch_size: int = 64,
    title: str = "vqa",
    ask: Ask = text_of,
    keep: Keep = keep_nothing,
) -> list[dict[str, Any]]:
    """One answer a question, in VQAv2's format ``[{"question_id", "answer"}]`` and its order.

    At most ``image_batch_size`` encoded images are held at a time, for any number of questions.

    Args:
        ask: text that ``respond`` is given for a question.
        keep: called with the answers of each batch as they come.
    """
    asked = _by_image(questions.questions)
    answers: dict[ImageId, str] = {}
    with tqdm(total=len(questions.questions), desc=title, unit="question") as progress:
        for image_ids in chunks(list(asked), image_batch_size):
            encoded = encode([questions.images[image_id] for image_id in image_ids])
            rows = [(row, q) for row, image_id in enumerate(image_ids) for q in asked[image_id]]
            # Questions of similar length share a batch, so that little of it is padding.
            rows.sort(key=lambda row: len(ask(row[1])))
            for batch in chunks(rows, batch_size):
                batch_asked = [question for _, question in batch]
                texts = respond(encoded[[row for row, _ in batch]], list(map(ask, batch_asked)))
                answers |= _named(batch_asked, texts, keep)
                progress.update(len(batch))
    return _in_order(questions, answers)


def answer_from_text(
    questions: QuestionSet,
    contexts: Mapping[ImageId, str],
    generate: Generate,
    prompt: Prompt,
    batch_size: int = 64,
    *,
    keep: Keep = keep_nothing,
) -> list[dict[str, Any]]:
    """The text-only control: the language model reads ``"<caption> <prompt>"`` and no image.

    Raises:
        ValueError: an image that is asked about has no context.
    """
    require_predictions({q.image_id for q in questions.questions}, contexts, "image's context")

    def reading(question: Question) -> str:
        return f"{contexts[question.image_id]} {prompt(question.text)}"

    answers: dict[ImageId, str] = {}
    order = sorted(questions.questions, key=lambda question: len(reading(question)))
    with tqdm(total=len(order), desc="vqa text only", unit="question") as progress:
        for batch in chunks(order, batch_size):
            texts = generate(None, [reading(question) for question in batch])
            answers |= _named(batch, texts, keep)
            progress.update(len(batch))
    return _in_order(questions, answers)


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


def _by_image(questions: Sequence[Question]) -> dict[ImageId, list[Question]]:
    grouped: dict[ImageId, list[Question]] = {}
    for question in questions:
        grouped.setdefault(question.image_id, []).append(question)
    return grouped


def _named(questions: Sequence[Question], texts: Sequence[str], keep: Keep) -> dict[ImageId, str]:
    pairs = zip(questions, texts, strict=True)
    answers = {question.question_id: text.strip() for question, text in pairs}
    keep([_row(*answer) for answer in answers.items()])
    return answers


def _row(question_id: ImageId, answer: str) -> dict[str, Any]:
    return {"question_id": question_id, "answer": answer}


def _in_order(questions: QuestionSet, answers: Mapping[ImageId, str]) -> list[dict[str, Any]]:
    order = [question.question_id for question in questions.questions]
    return [_row(key, answers[key]) for key in order]
