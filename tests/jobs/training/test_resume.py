"""Resuming through the real launcher: random kills, other numbers of ranks, full disks, S3."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cluster import checkpoint
from cluster.storage.open import open_storage
from cluster.storage.s3 import _client
from jobs.models import trained
from tests.faulty_s3 import BUCKET, Faults, faulty_proxy, s3_server
from tests.jobs.training.test_training import (
    ENV,
    ROOT,
    command,
    curve,
    kill_at,
    launcher,
    python,
    run,
    wait_for_step,
)
from tests.tiny_training import capfilt_output, tiny_clip, tiny_t5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data and frozen models."""
    folder = tmp_path_factory.mktemp("world")
    tiny_clip(folder / "clip")
    tiny_t5(folder / "t5")
    capfilt_output(folder / "data", shards=2, samples=20, bad=(5,))
    return folder


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """Stage 1 on one rank."""
    out = tmp_path_factory.mktemp("undisturbed")
    done = python(command(world, "stage1", out, 12))
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.long
def test_random_kills():
    """A short seed; the long one is ``tests/chaos_train.py --kills 20 --steps 200``."""
    script = ["tests/chaos_train.py", "--kills", "3", "--steps", "24", "--small"]
    done = python([*script, "--first-seed", "1"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 steps and the last checkpoint equal the undisturbed run" in done.stdout


TINYWORLD = {"stage1": "tinyworld", "stage2": "tinyworld-t5"}


def tinyworld(job: str, world: Path, out: Path) -> list[str]:
    """16 steps of TinyWorld with its own models, in bf16 with fp32 masters; dropout and stage 2's
    prefix splits are drawn.
    """
    return [
        *(f"jobs/{job}.py", "--recipe", TINYWORLD[job], "--data", str(world / "data")),
        *("--out", str(out), "--steps", "16", "--global-batch", "8"),
        *("--log-every", "1", "--save-every", "4", "--model.qformer.dropout", "0.1"),
    ]


@pytest.mark.long
@pytest.mark.parametrize("job", TINYWORLD)
def test_two_ranks_one_and_two_again(world, tmp_path, job):
    """The same samples, draws and, as micro-batches stay as they were, gradients: equal losses."""
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    done = run(launcher(tinyworld(job, world, whole), 2))
    assert done.returncode == 0, done.stderr
    kill_at(launcher(tinyworld(job, world, moved), 2), moved, step=4)
    assert checkpoint.find(moved).state["world"] == 2
    kill_at([sys.executable, *tinyworld(job, world, moved)], moved, step=8)
    found = checkpoint.find(moved)
    assert (found.state["world"], found.recipe["run"]["micro_batch"]) == (1, 4)
    done = run(launcher(tinyworld(job, world, moved), 2))
    assert done.returncode == 0, done.stderr
    assert [line["loss"] for line in curve(moved)] == pytest.approx(
        [line["loss"] for line in curve(whole)], rel=1e-6
    )
    assert len(curve(whole)) == 16 and curve(moved)[:4] == curve(whole)[:4]

    found = checkpoint.find(whole)  # trainable state only: nothing of the frozen models
    parameters = sum(tensor.numel() for tensor in found.trainable().values())
    size = sum(path.stat().st_size for path in found.folder.iterdir())
    assert parameters * 12 <= size < 1.05 * parameters * 12


def test_a_full_disk_and_on(world, undisturbed, tmp_path):
    """Saves fail from some step on, as on a full disk: the run goes on to its end and says so."""
    arguments = command(world, "stage1", tmp_path, 12)
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(tmp_path, 5, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 2 and "step 12/12" in said
    assert said.count("WARNING: checkpoint step_00000008 could not be written") == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "step_00000012 could not be written" in line and "step_00000004: make room" in line
    assert "Traceback" not in errors
    assert checkpoint.find(tmp_path).step == 4
    done = python(arguments)
    assert done.returncode == 0, done.stderr
    assert curve(tmp_path) == curve(undisturbed)


def test_a_cut_checkpoint_and_on(world, undisturbed, tmp_path):
    arguments = command(world, "stage1", tmp_path, 12)
    kill_at([sys.executable, *arguments], tmp_path, step=10)
    cut = tmp_path / "checkpoints" / "step_00000008" / "trainable.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    done = run(launcher(arguments, 1))
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("warning: ")]
    assert "step_00000008/trainable.safetensors has" in line and "falling back to" in line
    assert (cut.parent.parent / "step_00000008.damaged").is_dir()
    assert curve(tmp_path) == curve(undisturbed)


def test_on_s3_from_another_machine(world, undisturbed, tmp_path, monkeypatch):
    """Killed, and resumed where nothing of it is on the disk; then the start of stage 2."""
    out = f"s3://{BUCKET}/runs/stage1"
    arguments = command(world, "stage1", Path("X"), 12, "--out", out, "--tensorboard")
    faults = Faults(error_500=0.03, slow_down=0.03, reset=0.03, truncated=0.03, lost_answer=0.03)
    _client.cache_clear()
    with s3_server(monkeypatch) as server, faulty_proxy(server, faults) as url:
        storage = open_storage(out)
        aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        for machine, step in (("one", 6), ("two", 0)):
            cache = {"ISTHMUS_CACHE": str(tmp_path / machine)}
            env = {**ENV, **aws, "AWS_ENDPOINT_URL": url, **cache}
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if step:
                (log,) = wait_for_folder(tmp_path / machine / "runs", process)
                wait_for_step(log, step, process)
                while not storage.exists("checkpoints/latest"):
                    time.sleep(0.01)
                process.kill()
            said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert f"resuming from {out}/checkpoints/step_00000004" in said
        (tmp_path / "log.jsonl").write_bytes(storage.read("log.jsonl"))
        assert curve(tmp_path) == curve(undisturbed)
        assert len(storage.entries("tensorboard")) == 2  # one file a start
        names = {entry.name.split("/")[1] for entry in storage.entries("checkpoints", deep=True)}
        assert names == {"latest", "step_00000008", "step_00000012"}
        monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "three"))
        here, there = (trained.load_trained(run).module for run in (undisturbed, out))
        for one, other in zip(here.parameters(), there.parameters(), strict=True):
            assert torch.equal(one, other)
        second = [sys.executable, *command(world, "stage2", tmp_path / "second", 2, "--init", out)]
        subprocess.run(second, cwd=ROOT, env=env, check=True, timeout=300)
    _client.cache_clear()


def wait_for_folder(parent: Path, process: subprocess.Popen) -> list[Path]:
    while not (found := list(parent.glob("*"))):
        assert process.poll() is None
    return found
