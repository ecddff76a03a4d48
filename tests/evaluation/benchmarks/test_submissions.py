"""Submissions of a part of a split are refused."""

import pytest

from evaluation.benchmarks.submissions import PartialSubmission, require_complete


def test_all_ids_in_any_order_are_a_submission() -> None:
    require_complete([1, 2, 3], [3, 1, 2])
    require_complete([1, 2], ["2", "1"])  # GQA's and VizWiz's servers take texts


@pytest.mark.parametrize(
    ("split", "predicted", "message"),
    [
        (
            range(447_793),
            range(512),
            r"no submission: of the split's 447793 questions 447281 \(512, 513, 514, …\) lack a "
            "prediction, and a server takes all or none; leave out --limit and --skip-unreadable",
        ),
        ([1, 2], [1], r"of the split's 2 questions 1 \(2\) lack a prediction"),
        ([1, 2], [], r"of the split's 2 questions 2 \(1, 2\) lack"),
        ([1, 2], [1, 2, "2"], r"no submission: questions with several predictions: 1 \(2\)"),
        ([1, 2], [1, 2, 9], r"no submission: questions that the split lacks: 1 \(9\)"),
    ],
)
def test_missing_doubled_and_unknown_ids_are_named(
    split: list[int], predicted: list[int], message: str
) -> None:
    with pytest.raises(PartialSubmission, match=message):
        require_complete(split, predicted)


def test_images_of_captions_are_called_so() -> None:
    with pytest.raises(
        PartialSubmission, match=r"of the split's 2 images 1 \(7\) lack a prediction"
    ):
        require_complete([6, 7], [6], "image")
