"""Steps that are skipped on two ranks of a real engine, at every ZeRO stage."""

import json

import pytest

from cluster.ranks.guard import GuardConfig
from tests.run_ranks import run_ranks

CASES = ["0 bf16", "0 fp32", "1 bf16", "2 bf16", "2 fp32", "3 bf16"]


@pytest.fixture(scope="module")
def said() -> dict:
    """What rank 0 of two says, all cases in one start."""
    return json.loads(run_ranks("tests.cluster.ranks.guard_worker", 2).splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_a_bad_step_changes_nothing_and_is_told(said, case):
    found = said[case]
    assert found["same"] and found["moved"] and found["rest"] == []
    assert found["count"] == [3, 3, 4]  # three skipped steps are no updates
    loss, gradient, spike = found["told"]
    assert loss == {
        "step": 4,
        "reason": "a loss that is not finite",
        "samples": ["sample-4-1"],  # of the rank that had it
    }
    assert gradient["step"] == 5 and gradient["reason"] == "a gradient that is not finite"
    assert spike["reason"] == "a loss over 3 x the running mean"
    assert spike["samples"] == ["sample-6-0", "sample-6-1"]
    assert found["state"]["skipped"] == 3 and 1 < found["state"]["mean"] < 1.2


def test_too_many_stop_the_run(said):
    assert said["limit"].startswith("3 steps were skipped by step 3, over guard.limit = 2")


@pytest.mark.parametrize("stage", range(4))
def test_the_whole_gradient_is_clipped(said, stage):
    norm, moment, clipped_norm, clipped_moment = said[f"clip {stage}"]
    assert clipped_norm == pytest.approx(norm) and norm > 0.5  # told as it was before
    assert moment == pytest.approx(0.1 * norm, rel=1e-4)  # Adam's first moment: 1 - beta
    assert clipped_moment == pytest.approx(0.1 * 1e-3, rel=1e-4)


@pytest.mark.parametrize("stage", range(4))
def test_micro_batches_make_one_update_of_their_mean(said, stage):
    assert said[f"accumulated {stage}"] < 1e-6


@pytest.mark.parametrize("stage", range(4))
def test_a_step_reads_nothing_back_between_intervals(said, stage):
    """Loss, spike, norm and clip are settled on the device."""
    assert said[f"syncs {stage}"] == []


def test_limits_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"guard\.spike = 0\.5"):
        GuardConfig(spike=0.5)
    with pytest.raises(ValueError, match=r"guard\.limit = 0"):
        GuardConfig(limit=0)
