"""Nodes that come late get work, and one that is lost for good does not stop the map."""

import json
import subprocess
import sys
from pathlib import Path

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
