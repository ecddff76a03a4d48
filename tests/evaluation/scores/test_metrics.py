import pytest
import torch

from evaluation.scores.answers import (
    FEWEST_ANSWERS,
    exact_match,
    matches_any,
    normalise_answer,
    vqa_accuracy,
)
from evaluation.scores.means import GroupedMean, Mean
from evaluation.scores.predictions import require_predictions
from evaluation.scores.recall import recalls


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("Two", "2"),
        ("none", "0"),
        ("The red star", "red star"),
        ("a an the", ""),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),  # the official table knows one missing apostrophe only
        ("shes", "shes"),  # not in the official table
        ("somebody'd", "somebodyd"),  # the table's own slip
        ("twas yall", "'twas y'all"),
        ("red/blue", "red blue"),  # a mark without a blank beside it becomes a blank
        ("red, blue", "red blue"),  # with one it goes
        ("1,000", "1000"),  # a comma between digits
        ("1,000/x", "1000x"),  # … takes every other mark with it, without a blank
        ("2.5", "2.5"),
        ("st. john.", "st john"),
        ("1. 2", "1 2"),
        ("p.m.", "pm"),
        ("yes!", "yes"),
        ("10 o'clock", "10 o'clock"),
        ("it's", "it's"),
        ("." * 33, "."),  # the scorer stops after 32 periods
    ],
)
def test_official_normal_form(raw: str, normal: str) -> None:
    assert normalise_answer(raw) == normal


def test_vqa_accuracy_leaves_one_annotator_out() -> None:
    # 3 of 10 say "red": leaving out one of them 2/3, leaving out one of the 7 others 1.
    answers = ["red"] * 3 + ["blue"] * 7
    assert vqa_accuracy("red", answers) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert vqa_accuracy("Blue.", answers) == 1.0
    assert vqa_accuracy("green", answers) == 0.0
    # 1 of 10: leaving it out 0, otherwise 1/3.
    assert vqa_accuracy("red", ["red"] + ["blue"] * 9) == pytest.approx(0.3)
    # 2 of 10: 2 × 1/3 + 8 × 2/3.
    assert vqa_accuracy("red", ["red"] * 2 + ["blue"] * 8) == pytest.approx(0.6)


def test_unanimous_annotators_switch_normalisation_off() -> None:
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0.0
    assert vqa_accuracy("Yes", ["yes"] * 9 + ["no"]) == 1.0
    assert vqa_accuracy("yes\n", ["yes"] * 10) == 1.0  # blanks at the ends always go


def test_vqa_accuracy_needs_references() -> None:
    with pytest.raises(ValueError, match="no reference answers"):
        vqa_accuracy("red", [])


def test_fewer_than_four_references_cannot_score_one() -> None:
    for count, perfect in ((1, 0.0), (2, 1 / 3), (3, 2 / 3), (FEWEST_ANSWERS, 1.0)):
        assert vqa_accuracy("red", ["red"] * count) == pytest.approx(perfect)
        assert matches_any("Red.", ["red"] * count) == 1.0


def test_any_reference_matches_and_a_blank_one_does_not() -> None:
    assert matches_any("two", ["dog", "2"]) == 1.0
    assert matches_any("cat", ["dog", "2"]) == 0.0
    assert matches_any("", ["dog", " "]) == matches_any("", []) == 0.0


def test_exact_match_is_on_the_normal_form() -> None:
    assert exact_match("The Two.", "2") == 1.0
    assert exact_match("twos", "2") == 0.0


def test_means_add_up_like_one_pass() -> None:
    left, right = Mean(), Mean()
    left.add(1.0)
    right.add(0.0)
    right.add(0.5)
    assert (left + right).value == pytest.approx(0.5)
    assert Mean().value == 0.0


def test_grouped_mean() -> None:
    mean = GroupedMean()
    mean.add(1.0, question_type="colour")
    mean.add(0.0, question_type="count")
    mean.add(0.0, question_type="count")
    assert mean.as_dict() == {
        "accuracy": pytest.approx(1 / 3),
        "count": 3,
        "by_question_type": {"colour": 1.0, "count": 0.0},
    }


def test_missing_prediction_is_named() -> None:
    with pytest.raises(ValueError, match="question 12"):
        require_predictions([11, 12], {11: "red"}, "question")


def test_recalls_by_hand() -> None:
    # Two images, texts 0 and 1 of image 0, text 2 of image 1.
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.2, 0.3]])
    got = recalls(scores, [0, 0, 1], cutoffs=(1, 2))
    # TR: image 0 finds text 1 first; image 1 finds text 0 first, its own second.
    assert (got["tr_r1"], got["tr_r2"]) == (0.5, 1.0)
    # IR: text 0 prefers image 1 (wrong), text 1 image 0 (right), text 2 image 0 (wrong).
    assert got["ir_r1"] == pytest.approx(1 / 3)
    assert got["ir_r2"] == 1.0


def test_a_constant_score_is_worth_chance() -> None:
    got = recalls(torch.zeros(20, 20), list(range(20)))
    assert got["tr_r1"] == got["ir_r1"] == pytest.approx(1 / 20)
    assert got["tr_r10"] == got["ir_r10"] == pytest.approx(10 / 20)


def test_a_caption_that_two_images_share_is_found_in_half_of_the_orders() -> None:
    # Texts 0 and 2 are the same words, and the best of both images.
    scores = torch.tensor([[0.9, 0.5, 0.9, 0.1], [0.9, 0.1, 0.9, 0.5]])
    got = recalls(scores, [0, 0, 1, 1], cutoffs=(1, 2))
    assert (got["tr_r1"], got["tr_r2"]) == (0.5, 1.0)
    assert (got["ir_r1"], got["ir_r2"]) == (0.75, 1.0)


def test_ties_by_hand() -> None:
    # One wrong text above, then two right and two wrong ones tied: of the 6 orders of right (R) and
    # wrong (W) on the tied places 2 to 5, R comes first in 3 and WR.. in 2.
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.5, 0.1]])
    rows = torch.cat([scores, scores.flip(1)])
    owner = [1, 0, 1, 0, 1, 1]
    got = recalls(rows, owner, cutoffs=(1, 2, 3, 4))
    image = {1: 0.0, 2: 3 / 6, 3: 5 / 6, 4: 1.0}
    # Image 1 finds its text 0.9 (text 5 flipped is 0.9, its own) at once.
    for cutoff, hit in image.items():
        assert got[f"tr_r{cutoff}"] == pytest.approx((hit + 1) / 2)


def test_what_was_not_retrieved_is_no_hit() -> None:
    scores = torch.full((2, 2), float("-inf"))
    assert recalls(scores, [0, 1], cutoffs=(5,)) == {"tr_r5": 0.0, "ir_r5": 0.0}


@pytest.mark.parametrize(
    ("scores", "owner", "message"),
    [
        (torch.tensor([[float("nan")]]), [0], "NaN"),
        (torch.zeros(2, 1), [0], "image 1 has no text"),
        (torch.zeros(1, 1), [0, 0], "names 2 texts"),
    ],
)
def test_broken_scores_are_refused(scores: torch.Tensor, owner: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recalls(scores, owner)
