"""Choices among candidates with a model that knows the answer, and one that knows nothing."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from evaluation.benchmarks.catalogue import BENCHMARKS
from evaluation.benchmarks.folder import Asked
from evaluation.benchmarks.records import Question, QuestionSet
from evaluation.chunks.memory import answer_in_memory
from evaluation.outputs import Outputs
from evaluation.tasks.choices import (
    ChoiceTask,
    Choosing,
    Rank,
    choices,
    choosing_of,
    score_choices,
)
from evaluation.tasks.choices import choose as choose_items
from pipeline.tinyworld.benchmarks import write_benchmarks

CHOICES = [name for name, benchmark in BENCHMARKS.items() if benchmark.way == "choose"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choices")
    write_benchmarks(folder, 4, seed=0)
    return folder


def load(world: Path, name: str, split: str | None = None) -> tuple[QuestionSet, Choosing]:
    data = BENCHMARKS[name].load(world, split)
    assert isinstance(data, Asked)
    return data.questions, choosing_of(BENCHMARKS[name])


@dataclass(frozen=True)
class Fake:
    """Log-probabilities that a test gives; every word is a token."""

    log_probs: list[float]
    tokens: list[int]


def fake(log_probs: list[float], texts: Sequence[str]) -> Fake:
    return Fake(log_probs, [len(text.split()) for text in texts])


class Knowing:
    """A fake of ``Rank``: the right candidate has the highest log-probability.

    It knows the right candidate of a prompt about an image; in the blind control, where the image
    is another, it knows nothing and gives all candidates the same.
    """

    def __init__(self, questions: QuestionSet, choosing: Choosing) -> None:
        self.looks: list[Path] = []
        self.texts = 0
        self.right = {
            (questions.images[q.image_id], choosing.prompt(q)): q.candidates[q.correct]
            for q in questions.questions
            if q.correct is not None
        }

    def __call__(
        self, images: Sequence[Path], prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> list[Fake]:
        self.looks += images
        self.texts += sum(map(len, candidates))
        known = [self.right.get(key) for key in zip(images, prompts, strict=True)]
        return [
            fake([-0.1 if text == right else -5.0 for text in of_one], of_one)
            for right, of_one in zip(known, candidates, strict=True)
        ]


def choose(questions: QuestionSet, rank: Rank, choosing: Choosing) -> list[dict[str, Any]]:
    return choose_items(choices(questions).items, rank, choosing)


def evaluate_choices(
    questions: QuestionSet,
    rank: Rank,
    choosing: Choosing,
    out: Outputs,
    *,
    task: str,
    split: str = "test",
    batch_size: int = 64,
    controls: bool = True,
) -> dict[str, Any]:
    whole = ChoiceTask(questions, choosing, task, split, controls)
    done = answer_in_memory(
        whole, lambda _, items: choose_items(items, rank, choosing, batch_size), chunk=6
    )
    return whole.score(done, out)


@pytest.mark.parametrize("name", CHOICES)
def test_a_model_that_knows_scores_one(world: Path, tmp_path: Path, name: str) -> None:
    questions, choosing = load(world, name)
    model = Knowing(questions, choosing)
    scores = evaluate_choices(
        questions, model, choosing, Outputs(str(tmp_path)), task=name, split="x", batch_size=3
    )
    first = {"accuracy": "accuracy", "auroc": "auroc", "dialog": "mrr"}[choosing.metric]
    assert scores[first] == 1.0
    assert scores["blind"] < 1.0
    assert scores["count"] == len(questions.questions)
    assert scores["metric"] == choosing.metric
    rows = json.loads((tmp_path / f"{name}_x_results.json").read_text())
    assert [row["question_id"] for row in rows] == [q.question_id for q in questions.questions]
    assert (tmp_path / f"{name}_x_blind_results.json").is_file()
    assert score_choices(questions, rows, choosing.metric)[first] == 1.0  # from the file alone
    # The questions about an image follow each other.
    seen = model.looks[: len(questions.questions)]
    assert len([1 for a, b in pairwise(seen) if a != b]) == len(set(seen)) - 1


@pytest.mark.parametrize("name", ["aokvqa_choice", "hatefulmemes", "visdial"])
def test_test_sets_are_ranked_and_not_scored(world: Path, tmp_path: Path, name: str) -> None:
    questions, choosing = load(world, name, "test")
    model = Knowing(questions, choosing)
    scores = evaluate_choices(questions, model, choosing, Outputs(str(tmp_path)), task=name)
    assert scores["count"] == 0
    assert scores["notes"] == ["nothing was scored: no question has a known right candidate"]
    assert len(json.loads((tmp_path / f"{name}_test_results.json").read_text()))
    assert (tmp_path / f"{name}_test_submission{choosing.suffix}").is_file()


def submitted(world: Path, folder: Path, name: str) -> str:
    questions, choosing = load(world, name)
    out = Outputs(str(folder))
    evaluate_choices(
        questions, Knowing(questions, choosing), choosing, out, task=name, controls=False
    )
    return (folder / f"{name}_test_submission{choosing.suffix}").read_text()


def test_submission_of_visdial(world: Path, tmp_path: Path) -> None:
    rows = json.loads(submitted(world, tmp_path, "visdial"))
    questions, _ = load(world, "visdial")
    assert len(rows) == 40
    for row, question in zip(rows, questions.questions, strict=True):
        assert row["image_id"] == question.image_id
        assert sorted(row["ranks"]) == list(range(1, 101))
        assert row["ranks"][question.correct or 0] == 1
    assert [row["round_id"] for row in rows[:10]] == list(range(1, 11))


def test_submissions_of_the_other_choices(world: Path, tmp_path: Path) -> None:
    direct = json.loads(submitted(world, tmp_path, "aokvqa_choice"))
    assert all(
        direct[q.question_id] == {"multiple_choice": q.candidates[q.correct or 0]}
        for q in load(world, "aokvqa_choice")[0].questions
    )
    for name in ("scienceqa", "iconqa"):
        results = json.loads(submitted(world, tmp_path, name))["results"]
        asked = load(world, name)[0].questions
        assert results == {q.question_id: q.correct for q in asked}
    rows = list(csv.DictReader(submitted(world, tmp_path, "hatefulmemes").splitlines()))
    asked = load(world, "hatefulmemes")[0].questions
    assert [int(row["label"]) for row in rows] == [q.correct for q in asked]
    assert all(0 <= float(row["proba"]) <= 1 for row in rows)


def one(candidates: tuple[str, ...], correct: int | None = 0, number: int = 1) -> Question:
    return Question(number, 1, "?", candidates=candidates, correct=correct)


def set_of(*questions: Question) -> QuestionSet:
    return QuestionSet(questions, {1: Path("1.jpg")})


def test_verbalisers_add_up() -> None:
    log = {"no": 0.2, "false": 0.1, "yes": 0.05, "true": 0.3}

    def rank(
        images: Sequence[Path], prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> list[Fake]:
        return [fake([math.log(log[text]) for text in of_one], of_one) for of_one in candidates]

    choosing = Choosing(
        lambda q: q.text, verbalisers={"no": ("no", "false"), "yes": ("yes", "true")}
    )
    (row,) = choose(set_of(one(("no", "yes"))), rank, choosing)
    assert row["answer"] == "yes"
    assert row["scores"] == [pytest.approx(math.log(0.3)), pytest.approx(math.log(0.35))]
    (row,) = choose(set_of(one(("no", "yes"))), rank, Choosing(lambda q: q.text))
    assert row["answer"] == "no"


def test_a_mean_does_not_punish_long_candidates() -> None:
    def rank(
        images: Sequence[Path], prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> list[Fake]:
        return [fake([-1.0, -1.5], of_one) for of_one in candidates]

    questions = set_of(one(("red", "dark red")))
    (row,) = choose(questions, rank, Choosing(lambda q: q.text))
    assert (row["answer"], row["scores"], row["tokens"]) == ("red", [-1.0, -1.5], [1, 2])
    (row,) = choose(questions, rank, Choosing(lambda q: q.text, length="mean"))
    assert (row["answer"], row["scores"]) == ("dark red", [-1.0, -0.75])


def test_ties_of_dialogs_are_told() -> None:
    questions = set_of(one(("a", "b", "c")), one(("a", "b", "c"), number=2))
    rows = [
        {"question_id": 1, "scores": [-1.0, -1.0, -2.0]},
        {"question_id": 2, "scores": [0, -1, -2]},
    ]
    scores = score_choices(questions, rows, "dialog")
    assert scores["mrr"] == pytest.approx((1 / 1.5 + 1) / 2)
    assert "ndcg" not in scores
    assert scores["notes"][0].startswith("in 1 of 2 rounds the right option has the score of")


def test_auroc_of_one_class_is_left_out_and_told() -> None:
    scores = score_choices(
        set_of(one(("no", "yes"))), [{"question_id": 1, "scores": [0, -1]}], "auroc"
    )
    assert "auroc" not in scores
    assert scores["accuracy"] == 1.0
    assert "needs both classes" in scores["notes"][0]


def test_wrong_rows_and_ranks_are_refused() -> None:
    questions = set_of(one(("a", "b")))
    with pytest.raises(ValueError, match="question 1"):
        score_choices(questions, [])
    with pytest.raises(ValueError, match="two predictions"):
        score_choices(questions, [{"question_id": 1, "scores": [0, 1]}] * 2)
    with pytest.raises(ValueError, match="1 scores for 2 candidates"):
        score_choices(questions, [{"question_id": 1, "scores": [0]}])
    with pytest.raises(ValueError, match="1 scores for 2 candidates"):
        choose(questions, lambda i, p, c: [Fake([0.0], [1])], Choosing(lambda q: q.text))
    with pytest.raises(ValueError, match="question 1 has no candidates"):
        choose(set_of(one(())), lambda i, p, c: [Fake([], [])], Choosing(lambda q: q.text))
