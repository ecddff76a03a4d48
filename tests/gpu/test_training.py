"""The training loop on a GPU: it never waits between two log lines, repeats itself to the bit in
deterministic mode, and goes on from a checkpoint.
"""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers
from torch.profiler import ProfilerActivity, profile
from torch.torch_version import TorchVersion

from cluster import checkpoint
from cluster.logfiles import records_so_far
from cluster.ranks import zero_state
from cluster.runlog import RunLog
from jobs.benchmarks.gpu import cases
from jobs.benchmarks.gpu.parts import WAITS
from tests.gpu.needs import GPU, ON_GPU
from tests.tiny_training import capfilt_output

pytestmark = ON_GPU
ROOT = Path(__file__).parents[2]
PARTS = ["stage1", "opt-2.7b", "flan-t5-xl"]


@pytest.fixture
def training(tmp_path, request) -> Iterator[Any]:
    """Makes runs of tiny models by the part's name."""
    made: list[Any] = []

    def make(part: str, every: int = 1000, zero_stage: int = 2, precision: str = "bf16") -> Any:
        recipe = cases.settled_recipe("tiny", part, 8, GPU)
        zero = cases.replace(recipe.run.zero, stage=zero_stage, precision=precision)
        recipe = cases.replace(recipe, run=cases.replace(recipe.run, zero=zero))
        folder = tmp_path / f"{len(made)}"
        made.append(cases.make_training(recipe, GPU, folder, every=every, steps=10_000))
        return made[-1]

    yield make
    for run in made:
        run.close()


class Watched(RunLog):
    """Between two log lines, torch refuses whatever waits for the device."""

    def due(self, step: int) -> bool:
        line = super().due(step)
        torch.cuda.set_sync_debug_mode("default" if line else "error")
        return line


@pytest.mark.parametrize("part", PARTS)
def test_nothing_waits_for_the_device_between_two_log_lines(training, part):
    run = training(part, every=6)
    if part == "opt-2.7b" and TorchVersion(transformers.__version__) < "5.23":
        pytest.xfail("transformers before 5.23 looks whether a mask is all ones")
    run.steps(6)
    run.loop.log.__class__ = Watched
    refused = mock_synchronize()
    try:
        with refused as calls:
            run.batches[0].images_B3HW.is_pinned()
            torch.cuda.set_sync_debug_mode("error")
            run.steps(6)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not calls, calls


class mock_synchronize:
    """Notes calls of `torch.cuda.synchronize`, which torch's own mode lets pass."""

    def __enter__(self) -> list[str]:
        self._own, calls = torch.cuda.synchronize, []

        def note(*arguments: Any) -> None:
            frame = sys._getframe(1)
            calls.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            self._own(*arguments)

        torch.cuda.synchronize = note
        return calls

    def __exit__(self, *error: object) -> None:
        torch.cuda.synchronize = self._own


@pytest.mark.parametrize("part", PARTS)
def test_the_driver_is_not_asked_to_wait_more_often_for_more_steps(training, part):
    """What the profiler sees: waits belong to log lines and to the profiler, not to steps."""
    if part == "opt-2.7b" and TorchVersion(transformers.__version__) < "5.23":
        pytest.xfail("transformers before 5.23 looks whether a mask is all ones")
    run = training(part)
    run.steps(3)
    counts = []
    for steps in (2, 6):
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            run.steps(steps)
        events = recorded.key_averages()
        counts.append({event.key: event.count for event in events if event.key in WAITS})
    assert counts[0] == counts[1]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_trains_and_keeps_its_state(training, stage, precision):
    first = training("stage1", every=1, zero_stage=stage, precision=precision)
    first.steps(3)
    losses = [record["loss"] for record in records_so_far(first.folder / "log.jsonl")]
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    for kind in (zero_state.MASTER, *zero_state.MOMENTS):
        tensors = {name: t.detach().clone() for name, t in zero_state.read(first.loop.engine, kind)}
        assert all(tensor.isfinite().all() for tensor in tensors.values())
        zero_state.write(first.loop.engine, kind, tensors)
        again = dict(zero_state.read(first.loop.engine, kind))
        assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert zero_state.read_count(first.loop.engine) == 3


def test_zero_stages_make_the_same_losses(training):
    curves = []
    for stage in (0, 1, 2, 3):
        run = training("stage1", every=1, zero_stage=stage, precision="fp32")
        run.steps(4)
        curves.append([record["loss"] for record in records_so_far(run.folder / "log.jsonl")])
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=2e-3)


@pytest.mark.parametrize("part", PARTS)
def test_deterministic_mode_repeats_itself_to_the_bit(training, part):
    torch.use_deterministic_algorithms(True)
    try:
        weights = []
        for _ in range(2):
            run = training(part, every=1)
            run.steps(4)
            masters = zero_state.read(run.loop.engine, zero_state.MASTER)
            weights.append({name: tensor.detach().clone() for name, tensor in masters})
            curve = [record["loss"] for record in records_so_far(run.folder / "log.jsonl")]
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(curve) == 4
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def run_job(arguments: list[str]) -> str:
    """Runs a job on the GPU that it finds; what it said."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "DS_ACCELERATOR"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_checkpoint_saved_on_the_gpu_resumes(tmp_path):
    """The jobs as a person runs them: the loader's forked workers, page-locked batches, a save."""
    data, out = capfilt_output(tmp_path / "data", shards=2, samples=20), tmp_path / "run"
    command = ["jobs/stage1.py", "--recipe", "tinyworld", "--data", str(data), "--out", str(out)]
    command += ["--global-batch", "8", "--log-every", "1", "--save-every", "3", "--steps", "6"]
    command += ["--loader.workers", "2"]
    assert f"on {GPU.type}" in run_job(command)
    whole = [record["loss"] for record in records_so_far(out / "log.jsonl")]
    weights = checkpoint.find(out).trainable()
    pointer = out / "checkpoints" / "latest"
    last = pointer.read_text().strip()
    shutil.rmtree(pointer.parent / last)
    pointer.write_text(next(path.name for path in pointer.parent.glob("step_*")) + "\n")
    said = run_job(command)
    assert "resuming from" in said and "at step 3 of 6" in said
    assert [record["step"] for record in records_so_far(out / "log.jsonl")] == list(range(1, 7))
    resumed = [record["loss"] for record in records_so_far(out / "log.jsonl")]
    assert resumed == pytest.approx(whole, rel=2e-3)  # without deterministic mode not to the bit
    for name, tensor in checkpoint.find(out).trainable().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0.05, atol=5e-3)


def test_ranks_talk_by_nccl_and_by_gloo_beside_it(training):
    training("stage1")
    assert "cpu:gloo" in dist.get_backend_config() and "cuda:nccl" in dist.get_backend_config()
    message = torch.ones(3, device=GPU, dtype=torch.float64)
    dist.all_reduce(message)
    assert message.tolist() == [1.0, 1.0, 1.0]
