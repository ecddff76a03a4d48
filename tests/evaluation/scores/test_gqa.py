"""GQA's further numbers against cases computed by hand."""

from pathlib import Path

import pytest

from evaluation.benchmarks.records import Question, QuestionSet
from evaluation.scores.gqa import chi_square
from evaluation.tasks.questions import score_answers


def asked(key: str, answer: str, kind: str, group: str = "", **more: object) -> Question:
    return Question(key, 1, "?", (answer,), answer_type=kind, group=group, **more)  # type: ignore[arg-type]


def score(questions: list[Question], said: list[str], metric: str = "gqa.normalised") -> dict:
    rows = [
        {"question_id": q.question_id, "answer": answer}
        for q, answer in zip(questions, said, strict=True)
    ]
    return score_answers(QuestionSet(tuple(questions), {1: Path("1.jpg")}), rows, metric)


def test_chi_square_by_hand() -> None:
    gold = {"color": {"red": 3, "blue": 1}, "yes": {"yes": 2}}
    predicted = {"color": {"red": 1, "blue": 2, "green": 1}}
    # color: (1 - 3)²/3 + (2 - 1)²/1 = 7/3, of 4; yes: (0 - 2)²/2 = 2, of 2.
    assert chi_square(gold, predicted) == pytest.approx((4 * 7 / 3 + 2 * 2) / 6 / 100)
    assert chi_square(gold, gold) == 0.0


def test_binary_open_and_distribution() -> None:
    questions = [
        asked("a", "yes", "verify"),
        asked("b", "no", "logical"),
        asked("c", "red", "query", "color"),
        asked("d", "blue", "query", "color"),
    ]
    scores = score(questions, ["yes", "yes", "Red.", "red"])
    assert scores["accuracy"] == 0.5
    assert (scores["binary"], scores["open"]) == (0.5, 0.5)
    assert scores["distribution"] == pytest.approx(((2 - 1) ** 2 + (0 - 1) ** 2) / 100)
    assert scores["by_answer_type"] == {"logical": 0.0, "query": 0.5, "verify": 1.0}
    assert "consistency" not in scores
    assert score(questions, ["yes", "yes", "Red.", "red"], "gqa.strict")["accuracy"] == 0.25


def test_consistency_counts_what_right_answers_entail() -> None:
    questions = [
        asked("a", "yes", "verify", entailed=("a", "b", "c")),
        asked("b", "no", "verify", balanced=False),
        asked("c", "red", "query", balanced=False),
        asked("d", "red", "query", entailed=("c",)),
    ]
    # a is right and entails b (right) and c (wrong); d is wrong and entails nothing that counts.
    scores = score(questions, ["yes", "no", "blue", "blue"])
    assert scores["consistency"] == 0.5
    assert (scores["accuracy"], scores["count"]) == (0.5, 2)  # of the balanced ones
    scores = score([questions[0]], ["yes"])
    assert "consistency" not in scores  # b and c were not asked


def test_accuracy_by_words_and_by_steps_and_fitting_answers() -> None:
    colours = {"valid": ("red", "blue", "Green"), "plausible": ("red", "blue")}
    questions = [
        asked("a", "red", "query", steps=2, **colours),
        asked("b", "red", "query", steps=3, **colours),
        asked("c", "red", "query", steps=3, **colours),
        asked("d", "no", "verify", steps=1, balanced=False),
    ]
    scores = score(questions, ["red", "green", "a dog", "no"])
    assert scores["per_words"] == {"1": pytest.approx(1 / 3)}  # "?" is one word
    assert scores["per_steps"] == {"2": 1.0, "3": 0.0}
    assert scores["validity"] == pytest.approx(2 / 3)
    assert scores["plausibility"] == pytest.approx(1 / 3)
    assert score(questions, ["red", "green", "x", "no"], "gqa.strict")["validity"] == pytest.approx(
        1 / 3
    )
    unknown = score([asked("a", "red", "query")], ["red"])
    assert not {"per_steps", "validity", "plausibility"} & set(unknown)
