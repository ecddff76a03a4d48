"""Scores from a judge's verdicts, against cases computed by hand."""

import pytest

from evaluation.scores.judged import judged_scores, parse_verdict


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8 9\nBoth are right.", (8, 9)),
        ("8, 7.5", (8, 7.5)),
        ("\n 10\t1 \nand so on", (10, 1)),
        ("8,9", (8, 9)),
        ("8", None),
        ("8 9 7", None),
        ("Assistant 1: 8", None),
        ("8/10 9/10", None),
        ("nan 8", None),
        ("8 inf", None),
        ("0 8", None),
        ("8 11", None),
        ("-1 -1", None),
        ("", None),
        ("I rate them so:\n8 9", None),
    ],
)
def test_the_first_line_of_a_verdict_is_two_numbers(
    text: str, expected: tuple[float, float] | None
) -> None:
    assert parse_verdict(text) == expected


def test_a_score_is_a_ratio_of_means_over_questions() -> None:
    scores = judged_scores({"detail": [(8, 4)], "conv": [(10, 5), (5, 10)], "complex": []})
    assert scores["by_question_type"] == {"conv": 1.0, "detail": 0.5}  # not (0.5 + 2) / 2
    assert scores["relative"] == pytest.approx((4 + 5 + 10) / (8 + 10 + 5))
    assert (scores["count"], scores["model"]) == (3, pytest.approx(19 / 3))
    assert judged_scores({"conv": []}) == {"count": 0}
