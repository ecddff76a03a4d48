"""The named variants of VQA accuracy, GQA and A-OKVQA against cases computed by hand."""

import pytest

from evaluation.scores.answers import METRICS


@pytest.mark.parametrize(
    ("predicted", "answers", "official", "lavis", "always"),
    [
        # Annotators agree: official compares as written, LAVIS normalises the prediction alone.
        ("Yes.", ["yes"] * 10, 0.0, 1.0, 1.0),
        ("two", ["two"] * 10, 1.0, 0.0, 1.0),
        ("2", ["two"] * 10, 0.0, 0.0, 1.0),
        ("the dog", ["the dog"] * 10, 1.0, 0.0, 1.0),
        ("yes", ["yes"] * 10, 1.0, 1.0, 1.0),
        # They differ: LAVIS takes only the punctuation from references, case and articles stay.
        ("the dog", ["a dog"] * 5 + ["cat"] * 5, 1.0, 0.0, 1.0),
        ("Dog", ["dog!"] * 5 + ["cat"] * 5, 1.0, 0.0, 1.0),  # "dog!" becomes "dog " in LAVIS
        ("ice cream", ["ice-cream"] * 5 + ["cake"] * 5, 1.0, 1.0, 1.0),
        ("dog", ["Dog"] * 5 + ["cat"] * 5, 1.0, 0.0, 1.0),
        ("two", ["2"] * 5 + ["3"] * 5, 1.0, 1.0, 1.0),
        ("red", ["red"] * 2 + ["blue"] * 8, 0.6, 0.6, 0.6),
        ("red\n", ["red "] * 4 + ["blue"] * 6, 1.0, 0.0, 1.0),  # LAVIS strips no reference
    ],
)
def test_variants_of_vqa_accuracy(
    predicted: str, answers: list[str], official: float, lavis: float, always: float
) -> None:
    for variant, score in (("official", official), ("lavis", lavis), ("always", always)):
        assert METRICS[f"vqa.{variant}"](predicted, answers) == pytest.approx(score), variant


def test_variants_of_gqa() -> None:
    for predicted, strict in (("yes", 1.0), ("Yes.", 0.0), ("the yes", 0.0)):
        assert METRICS["gqa.strict"](predicted, ["yes"]) == strict
        assert METRICS["gqa.normalised"](predicted, ["yes"]) == 1.0


def test_aokvqa_counts_agreeing_annotators_without_leaving_one_out() -> None:
    score = METRICS["aokvqa.official"]
    for agreeing, expected in ((0, 0.0), (1, 1 / 3), (2, 2 / 3), (3, 1.0), (10, 1.0)):
        answers = ["surf"] * agreeing + ["swim"] * (10 - agreeing)
        assert score("surf", answers) == pytest.approx(expected)
    assert score("Surf", ["surf"] * 10) == 0.0
