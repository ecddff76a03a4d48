"""Slurm's script under a stand-in that signals and kills as slurmstepd does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import checkpoint
from cluster.logfiles import records_so_far
from cluster.runlog import LOG
from tests.jobs.training.test_training import ENV, ROOT, command, wait_for_step
from tests.tiny_training import capfilt_output, tiny_clip

SCRIPT = ROOT / "cluster" / "deploy" / "slurm_train.sh"
SRUN = ROOT / "tests" / "jobs" / "training" / "slurm_step.py"
SHIMS = {
    "scontrol": '[[ $1 == show ]] && echo localhost || echo "scontrol $*" >> "$SAID"',
    "srun": f'exec "{sys.executable}" "{SRUN}" "$@"',
}


@pytest.mark.slow
def test_a_preempted_job_saves_and_goes_back_into_the_queue(tmp_path: Path):
    """SIGTERM to every process of the step, as Slurm sends it: the ranks save where they are."""
    tiny_clip(tmp_path / "clip")
    capfilt_output(tmp_path / "data", shards=1, samples=20)
    for name, body in SHIMS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    out, said, preempt = (tmp_path / name for name in ("out", "said", "preempt"))
    slurm = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "localhost"}
    slurm |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_GPUS_ON_NODE": "1", "SLURM_NNODES": "1"}
    slurm |= {"SAID": str(said), "PREEMPT": str(preempt)}
    job = command(tmp_path, "stage1", out, 2000, "--save-every", "1000")
    process = subprocess.Popen(
        ["bash", str(SCRIPT), *job],
        env={**ENV, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_step(out, 3, process)
    preempt.touch()
    told, _ = process.communicate(timeout=300)
    step = len(records_so_far(out / LOG))
    assert f"stopped by a signal at step {step}; the same command resumes" in told, told
    assert checkpoint.find(out).step == step >= 3
    assert process.returncode not in (0, 2) and "back into the queue" in told
    assert said.read_text() == f"scontrol requeue {os.getpid()}\n"
