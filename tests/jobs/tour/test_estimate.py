"""The tour tells how long it will take, by a trial of its own arithmetic."""

import pytest

from jobs.tour.estimate import START, Work, expected_seconds, measure

WORK = Work(images=4096, stage1=12_800, t5=17_920, opt=9_600, tests=256, ranks=2)


def test_at_half_the_rate_all_but_the_starts_takes_twice_as_long():
    slow, fast = expected_seconds(WORK, 20, 20), expected_seconds(WORK, 40, 40)
    assert slow - START == pytest.approx(2 * (fast - START))


def test_bf16_shortens_the_training_alone():
    training = expected_seconds(WORK, 30, 30) - expected_seconds(WORK, 60, 30)
    assert 0 < training < expected_seconds(WORK, 30, 30) / 2


def test_the_trial_runs_in_the_format_that_training_will_take():
    dtype, trained, fp32 = measure()
    assert dtype in ("bf16", "fp32") and trained > 0 and fp32 > 0
    assert (trained == fp32) == (dtype == "fp32")
