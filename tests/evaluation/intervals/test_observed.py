"""Observations of every task: the same numbers as its scores, written and read again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.benchmarks.records import CaptionedImage, Question, QuestionSet
from evaluation.intervals.answers import observe_answers, observe_choices, observe_judged
from evaluation.intervals.bootstrap import estimate
from evaluation.intervals.captions import observe_captions, observe_retrieval
from evaluation.intervals.items import as_json, dumps, from_json, items_name
from evaluation.intervals.observed import Observed
from evaluation.intervals.scores import with_intervals
from evaluation.scores.answers import METRICS
from evaluation.scores.captions import score_all
from evaluation.scores.gqa import gqa_scores
from evaluation.scores.judged import judged_scores
from evaluation.scores.recall import hits, recalls

WORDS = ("a", "red", "blue", "star", "dog", "cat", "runs", "sits", "near", "under", "the", "road")


def captions(seed: int, images: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    draw = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(WORDS[n] for n in draw.integers(0, len(WORDS), draw.integers(5, 10)))

    gold = {str(n): [text() for _ in range(3)] for n in range(images)}
    said = {}
    for key, texts in gold.items():  # a reference with another beginning: long n-grams match
        words = texts[0].split()
        said[key] = " ".join([*text().split()[: draw.integers(0, 3)], *words[1:]])
    return gold, said


def points(observed: Observed) -> dict[str, float]:
    return {one.name[0]: one.value for one in estimate(observed) if not one.name[1]}


def question_set(questions: list[Question]) -> QuestionSet:
    return QuestionSet(tuple(questions), {q.image_id: Path("x") for q in questions})


def same(first: list[Observed], second: list[Observed]) -> bool:
    return json.dumps(as_json(first)) == json.dumps(as_json(second))


def test_caption_scores_are_recomputed_from_the_counts_of_images() -> None:
    """BLEU and METEOR are no means: they follow from the sums of each image's counts."""
    gold, said = captions(0, 24)
    found = score_all(gold, said)
    observed = observe_captions(
        found, {"in-domain": {"0": 1.0, "1": 2.0}}, dict.fromkeys(gold, 0.5)
    )
    got = points(observed)
    for name in ("bleu1", "bleu2", "bleu3", "bleu4", "meteor", "rouge_l", "cider"):
        assert got[name] == pytest.approx(found.metrics[name], rel=1e-9), name
    assert got["domains.in-domain.cider"] == 1.5
    scores = {**found.metrics, "shuffled_cider": 0.5, "notes": []}
    with_them = with_intervals(scores, [observed])
    for name in ("bleu1", "bleu4", "meteor", "rouge_l", "cider"):
        low, high = with_them["intervals"][name]
        assert low < found.metrics[name] < high, name
    assert "domains.in-domain.cider" not in with_them["intervals"]  # the scores do not show it
    again = from_json(json.loads(dumps([observed])))
    assert same(again, [observed])
    assert estimate(again[0]) == estimate(observed)


def test_answers_have_the_controls_and_groups_of_the_scores() -> None:
    asked = [
        Question(n, n // 2, "?", ("red",) * 10, "color" if n % 3 else "", "other")
        for n in range(60)
    ]  # fmt: skip
    rows = [{"question_id": n, "answer": "red" if n % 4 else "blue"} for n in range(59)]
    blind = [{"question_id": n, "answer": "blue"} for n in range(60)]
    questions = question_set(asked)
    observed = observe_answers(questions, rows, {"blind": blind}, "vqa.official")
    assert len(observed.items) == 59  # the last one failed
    assert points(observed) == pytest.approx(
        {"accuracy": 44 / 59, "exact_match": 44 / 59, "blind": 0.0, "exact_match_blind": 0.0}
    )
    scores = {
        "accuracy": 44 / 59,
        "count": 59,
        "by_question_type": {"color": 29 / 39},
        "by_answer_type": {"other": 44 / 59},
        "blind": 0.0,
        "notes": ["x"],
    }
    found = with_intervals(scores, [observed])
    assert set(found["intervals"]) == {
        "accuracy", "blind", "by_question_type.color", "by_answer_type.other",
    }  # fmt: skip
    low, high = found["intervals"]["accuracy"]
    assert 0.6 < low < 44 / 59 < high < 0.9
    assert found["intervals"]["blind"][0] == 0.0
    assert found["notes"][0] == "x"
    assert "rough" in found["notes"][1] and "blind" in found["notes"][1]
    assert found == with_intervals(scores, [observed])
    other = with_intervals({**scores, "accuracy": 0.5}, [observed])
    assert "accuracy" not in other["intervals"] and other["accuracy"] == 0.5
    assert other["notes"][1].startswith("no interval for accuracy: it is 0.5, and 0.745763 when")


def test_gqas_means_are_observed_and_its_distribution_is_not() -> None:
    asked = [
        Question(str(n), n, "is it?" if n < 20 else "is it red?", ("yes",),
                 answer_type="query" if n % 2 else "verify", entailed=(str((n + 1) % 40),),
                 steps=2 if n < 20 else None, valid=("yes", "no") if n % 2 else None)
        for n in range(40)
    ]  # fmt: skip
    rows = [{"question_id": str(n), "answer": "yes" if n < 30 else "no"} for n in range(40)]
    got = points(observe_answers(question_set(asked), rows, {}, "gqa.normalised"))
    assert got == pytest.approx(
        {"accuracy": 0.75, "binary": 0.75, "open": 0.75, "consistency": 29 / 30, "validity": 1.0,
         "per_words.2": 1.0, "per_words.3": 0.5, "per_steps.2": 1.0}
    )  # fmt: skip
    scores = {"accuracy": 0.75, **gqa_scores(asked, {r["question_id"]: r["answer"] for r in rows},
                                             METRICS["gqa.normalised"])}  # fmt: skip
    found = observe_answers(question_set(asked), rows, {}, "gqa.normalised")
    assert set(with_intervals(scores, [found])["intervals"]) == set(got)


def test_a_judges_relative_score_is_a_ratio_of_sums() -> None:
    draw, kinds = np.random.default_rng(3), ("conv", "detail")
    asked = [Question(n, n // 2, "?", question_type=kinds[n % 2]) for n in range(61)]
    pairs = {n: (float(draw.integers(6, 11)), float(draw.integers(2, 9))) for n in range(60)}
    observed = observe_judged(asked, pairs)
    by_kind = {kind: [pairs[n] for n in range(k, 60, 2)] for k, kind in enumerate(kinds)}
    scores = {**judged_scores(by_kind), "notes": []}
    found = with_intervals(scores, [observed])["intervals"]
    assert set(found) == {"relative", "model", "reference", "by_question_type.conv",
                          "by_question_type.detail"}  # fmt: skip
    model, reference = np.array([pairs[n][::-1] for n in range(60)]).T
    low, high = found["relative"]
    left_out = model - model.sum() / reference.sum() * reference  # the delta method, by image
    error = np.sqrt((left_out.reshape(30, 2).sum(axis=1) ** 2).sum() * 30 / 29) / reference.sum()
    assert (high - low) / 2 == pytest.approx(2.045 * error, rel=0.12)
    assert same(from_json(as_json([observed])), [observed])
    assert with_intervals({"count": 0}, [observe_judged(asked, {})])["intervals"] == {}


def test_choices_ranks_and_probabilities() -> None:
    draw = np.random.default_rng(1)
    asked = [
        Question(
            n, n // 2, "?", candidates=("a", "b"), correct=n % 2, relevance=(0.0, float(n % 2))
        )
        for n in range(40)
    ]
    rows = [
        {"question_id": n, "scores": np.log(draw.dirichlet([1, 1])).tolist()} for n in range(40)
    ]
    questions = question_set(asked)
    accuracy = points(observe_choices(questions, rows, {"blind": rows}, "accuracy"))
    assert accuracy["accuracy"] == accuracy["blind"]
    area = observe_choices(questions, rows, {"blind": rows[:30]}, "auroc")
    assert points(area)["accuracy"] == accuracy["accuracy"]
    assert area.names() == ["auroc", "accuracy", "blind"]
    assert same(from_json(as_json([area])), [area])
    dialog = points(observe_choices(questions, rows, {}, "dialog"))
    assert dialog["mrr"] == pytest.approx((1 + accuracy["accuracy"]) / 2)
    assert dialog["mean_rank"] == pytest.approx(2 - accuracy["accuracy"])
    assert 0 < dialog["ndcg"] <= 1


def test_retrieval_has_a_part_of_images_and_a_part_of_texts() -> None:
    torch.manual_seed(0)
    owner = [row for row in range(20) for _ in range(2)]
    scores_IT = torch.randn(20, 40)
    items = [CaptionedImage(f"i{n}", Path("x"), ("a", "b")) for n in range(20)]
    every = {"": hits(scores_IT, owner), "itc.": hits(-scores_IT, owner)}
    parts = observe_retrieval(items, owner, every)
    wanted = recalls(scores_IT, owner)
    wanted |= {f"itc.{name}": value for name, value in recalls(-scores_IT, owner).items()}
    assert points(parts[0]) | points(parts[1]) == pytest.approx(wanted)
    assert parts[1].items[:3] == ("i0#1", "i0#2", "i1#1")
    assert parts[1].images[:3] == ("i0", "i0", "i1")
    nested = recalls(scores_IT, owner) | {"itc": recalls(-scores_IT, owner)}
    assert "itc.ir_r10" in with_intervals(nested, parts)["intervals"]


def test_a_file_of_another_version_or_a_damaged_one_is_refused() -> None:
    assert items_name("vqa", "val") == "vqa_val_items.json"
    with pytest.raises(ValueError, match=r"a\.json is of version 7"):
        from_json({"version": 7}, "a.json")
    with pytest.raises(ValueError, match="version None"):
        from_json([], "a.json")
    with pytest.raises(ValueError, match="damaged"):
        from_json({"version": 1, "parts": [{"items": []}]}, "a.json")
