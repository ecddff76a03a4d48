"""The beginning of a run: what is watched from when on, and what it writes of how it computes."""

import subprocess
import sys
from pathlib import Path

from cluster import checkpoint
from tests.jobs.training.test_training import ENV, ROOT, command
from tests.tiny_training import capfilt_output, tiny_clip

PROGRAM = """
import sys
import torch
from jobs import stage1
from jobs.training import objectives, run

made, dog = objectives.representation, run.Watchdog.__init__

def models(*given):
    print("models", flush=True)
    return made(*given)

def watchdog(*given):
    print("watchdog", flush=True)
    dog(*given)

objectives.representation, run.Watchdog.__init__ = models, watchdog
stage1.main(sys.argv[1:])
print("deterministic:", torch.are_deterministic_algorithms_enabled())
import os
print(os.environ["CUBLAS_WORKSPACE_CONFIG"])
"""


def test_a_run_is_watched_once_its_models_are_loaded_and_says_that_it_is_deterministic(
    tmp_path: Path,
):
    """Loading models may take longer than a step ever should."""
    tiny_clip(tmp_path / "clip")
    capfilt_output(tmp_path / "data", shards=1, samples=20)
    line = command(tmp_path, "stage1", tmp_path / "out", 2, "--deterministic")[1:]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *line],
        cwd=ROOT, env=ENV, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    (opening,) = [line for line in said if "starting at step 0 of 2" in line]
    assert opening.endswith("; deterministic")
    assert said.index("models") < said.index("watchdog")
    assert said[-2:] == ["deterministic: True", ":4096:8"]
    found = checkpoint.find(tmp_path / "out")
    assert found.state["deterministic"] is True and found.recipe["run"]["deterministic"] is True
