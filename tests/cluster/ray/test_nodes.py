"""Nodes that come late get work, and one that is lost for good does not stop the map."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_nodes_come_late_and_are_lost_for_good():
    ran = subprocess.run(
        [sys.executable, "tests/cluster/ray/nodes_worker.py"],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.strip().splitlines()[-1])
    assert sorted(map(int, found["results"])) == list(range(60))  # every item, once each
    assert found["rooms"] == [1, 5, 3]  # one CPU stays free for the tasks
    (lost_at,) = found["lost_at"]  # when both nodes had given results, and well before the end
    assert lost_at < 50 and len(set(found["results"].values())) == 2


def grown(device: str) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "tests/cluster/ray/growing_worker.py", device],
        cwd=ROOT, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    head, *said, found = ran.stdout.strip().splitlines()
    return {**json.loads(head), **json.loads(found), "said": "\n".join(said)}


@pytest.mark.slow
def test_a_cluster_without_workers_yet_gets_the_device_of_those_that_come():
    found = grown("gpu")
    assert found["device"] == "accelerator_type:A10G"
    assert "waiting for a node with 0.5 CPU, 1 GPU" in found["said"]
    # The models' worker was on the new node: Ray lent it a GPU, which here torch cannot see.
    assert "Ray lent GPU 0 of node" in found["error"] and "torch sees none" in found["error"]


@pytest.mark.slow
def test_a_cluster_without_a_gpu_is_not_taken_for_one_of_cpus():
    found = grown("auto")
    assert "device" not in found and "--device gpu" in found["error"]


@pytest.mark.slow
def test_nothing_is_prepared_on_a_head_without_the_memory():
    """Its four CPUs hold workers too, but an item's memory is on the other node alone."""
    found = grown("cpu")
    assert found["device"] == "cpu" and len(found["results"]) == 6
    assert found["head"] not in {prepared for prepared, _ in found["results"].values()}
