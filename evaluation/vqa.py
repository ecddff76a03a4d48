"""Visual question answering: each image is encoded once for all its questions.

Three runs of the same questions tell what a model sees: with the image, with another image (blind:
what the language model knows without looking), and with a true caption in its place (text only: the
ceiling that the language model sets).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from tqdm import tqdm

from evaluation.benchmarks.readers import ImageId, Question, QuestionSet
from evaluation.caption import Encode, Generate, Keep, chunks, keep_nothing
from evaluation.scores.metrics import (
    FEWEST_ANSWERS,
    GroupedMean,
    Mean,
    exact_match,
    matches_any,
    require_predictions,
    vqa_accuracy,
)

Prompt = Callable[[str], str]
"""A question -> the text after the visual prompt."""
Respond = Callable[[Tensor, Sequence[str]], list[str]]
"""Encoded images and a question for each -> answers."""
Metric = Callable[[str, Sequence[str]], float]


def answer_questions(
    questions: QuestionSet,
    encode: Encode,
    respond: Respond,
    *,
    batch_size: int = 64,
    image_batch_size: int = 64,
    title: str = "vqa",
    keep: Keep = keep_nothing,
) -> list[dict[str, Any]]:
    """One answer a question, in VQAv2's format ``[{"question_id", "answer"}]`` and its order.

    At most ``image_batch_size`` images are held at a time, whatever the number of questions.
    ``keep`` is given the answers of each batch as they come.
    """
    asked = _by_image(questions.questions)
    answers: dict[ImageId, str] = {}
    with tqdm(total=len(questions.questions), desc=title, unit="question") as progress:
        for image_ids in chunks(list(asked), image_batch_size):
            encoded = encode([questions.images[image_id] for image_id in image_ids])
            rows = [(row, q) for row, image_id in enumerate(image_ids) for q in asked[image_id]]
            # Questions of like length share a batch, so that little is padding.
            rows.sort(key=lambda row: len(row[1].text))
            for batch in chunks(rows, batch_size):
                batch_asked = [question for _, question in batch]
                texts = respond(
                    encoded[[row for row, _ in batch]], [question.text for question in batch_asked]
                )
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
    """The text-only ceiling: ``"<caption> <prompt>"`` to the language model, and no image.

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
    questions: QuestionSet, results: Sequence[Mapping[str, Any]], metric: Metric = vqa_accuracy
) -> dict[str, Any]:
    """Accuracy overall and per question type and answer type, as fractions.

    Beside VQA accuracy: ``exact_match``, the share of answers that match any reference, and
    ``fewest_answers``, the references of the question that has the fewest.

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
        groups = {"question_type": question.question_type, "answer_type": question.answer_type}
        score = metric(given[question.question_id], question.answers)
        mean.add(score, **{kind: name for kind, name in groups.items() if name})
        matching.add(matches_any(given[question.question_id], question.answers))
    if metric is not vqa_accuracy:
        return mean.as_dict()
    fewest = min((len(question.answers) for question in questions.questions), default=0)
    return mean.as_dict() | {"exact_match": matching.value, "fewest_answers": fewest}


def scoring_notes(questions: QuestionSet, metric: Metric = vqa_accuracy) -> list[str]:
    """What a reader of the scores must know about the references, a sentence each."""
    asked, answered = len(questions.questions), questions.answered().questions
    if not answered:
        return ["nothing was scored: no question has a reference answer"]
    notes = []
    if len(answered) < asked:
        notes.append(
            f"{asked - len(answered)} of {asked} questions have no reference answer; they were "
            "answered and not scored"
        )
    few = sum(len(question.answers) < FEWEST_ANSWERS for question in answered)
    if few and metric is vqa_accuracy:
        notes.append(
            f"{few} of {len(answered)} questions have fewer than {FEWEST_ANSWERS} reference "
            "answers, with which VQA accuracy gives a right answer less than 1 (0, 1/3, 2/3 for "
            "1, 2, 3 references); read exact_match instead"
        )
    return notes


def gqa_accuracy(predicted: str, answers: Sequence[str]) -> float:
    """Exact match with GQA's one answer, after normalisation."""
    return exact_match(predicted, answers[0])


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
