"""Training on several machines: two launchers without ssh, Ray, Slurm's script, dead launchers."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import checkpoint
from cluster.logfiles import records_so_far
from cluster.ranks import supervise
from cluster.runlog import LOG
from jobs import launch
from tests.chaos_train import family
from tests.jobs.training.test_training import (
    ENV,
    ROOT,
    command,
    curve,
    launcher,
    run,
    wait_for_step,
)
from tests.run_ranks import free_port
from tests.tiny_training import capfilt_output, tiny_clip

DEPLOY = ROOT / "cluster" / "deploy"
STEPS = 12


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data and a frozen encoder."""
    folder = tmp_path_factory.mktemp("world")
    tiny_clip(folder / "clip")
    capfilt_output(folder / "data", shards=2, samples=20)
    return folder


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """Two ranks of one machine that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole")
    done = run(launcher(command(world, "stage1", out, STEPS), 2))
    assert done.returncode == 0, done.stderr
    return out


def node(index: int, port: int, hosts: Path, arguments: list[str]) -> subprocess.Popen:
    """One machine's launcher, in a process group of its own."""
    deepspeed = shutil.which("deepspeed", path=Path(sys.executable).parent) or "deepspeed"
    options = ["--hostfile", str(hosts), "--no_ssh", "--node_rank", str(index)]
    options += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    return subprocess.Popen(
        [sys.executable, deepspeed, *options, *arguments],
        cwd=ROOT,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def nodes(hosts: Path, arguments: list[str]) -> list[subprocess.Popen]:
    port = free_port()
    return [node(index, port, hosts, arguments) for index in (0, 1)]


@pytest.mark.long
@pytest.mark.slow
def test_one_of_two_machines_dies(world, whole, tmp_path):
    """The other one ends and says why; both started again give the undisturbed run."""
    hosts = tmp_path / "hostfile"
    hosts.write_text("node-a slots=1\nnode-b slots=1\n")
    arguments = command(world, "stage1", tmp_path / "out", STEPS, "--zero.timeout-s", "60")
    first, second = nodes(hosts, arguments)
    wait_for_step(tmp_path / "out", 6, first)
    os.killpg(second.pid, signal.SIGKILL)
    second.wait()
    begun = time.monotonic()
    said, _ = first.communicate(timeout=120)
    lines = [line for line in said.splitlines() if "lost the other ranks" in line]
    assert len(lines) == 1 and "error: rank 0" in lines[0] and "Traceback" not in said
    assert first.returncode == 1 and time.monotonic() - begun < 100
    for process in nodes(hosts, arguments):
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert curve(tmp_path / "out") == curve(whole)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["runner", "launch"])
def test_ranks_end_when_their_launcher_is_killed(world, tmp_path, victim):
    """SIGKILL to one launcher alone: its ranks save what they have, and none is left."""
    arguments = command(world, "stage1", tmp_path, 2000, "--save-every", "1000")
    process = subprocess.Popen(
        launcher(arguments, 2), cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL, start_new_session=True
    )
    wait_for_step(tmp_path, 3, process)
    is_launch = [p for p in family(process.pid) if "deepspeed.launcher.launch" in p.cmdline()]
    os.kill(process.pid if victim == "runner" else is_launch[0].pid, signal.SIGKILL)
    limit = time.monotonic() + 60
    while family(process.pid):
        process.poll()
        assert time.monotonic() < limit, [p.cmdline() for p in family(process.pid)]
        time.sleep(0.1)
    assert checkpoint.find(tmp_path).step == len(records_so_far(tmp_path / LOG)) >= 3


def test_launchers_are_found_and_told_from_later_processes():
    assert supervise.launchers() == {}
    assert supervise._mark(os.getpid()) and not supervise._mark(2**22 + 1)
    child = subprocess.Popen([sys.executable, "-c", ""])
    time.sleep(0.5)
    assert supervise._mark(child.pid) == ""  # dead, though nobody has waited for it
    child.wait()


@pytest.mark.long
@pytest.mark.slow
def test_on_ray_a_lost_machine_is_replaced(world, whole, tmp_path):
    arguments = command(world, "stage1", tmp_path, STEPS, "--zero.timeout-s", "60")
    script = [sys.executable, "tests/jobs/train_on_ray.py", str(tmp_path)]
    done = run([*script, "6", *arguments])
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "starting all ranks again (1 of 10)" in said and f"step {STEPS}/{STEPS}" in said
    assert curve(tmp_path) == curve(whole)


@pytest.mark.long
@pytest.mark.slow
def test_on_ray_a_stop_saves(world, tmp_path):
    arguments = command(world, "stage1", tmp_path, 2000, "--save-every", "1000")
    done = run([sys.executable, "tests/jobs/train_on_ray.py", str(tmp_path), "0", *arguments])
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "launch: stopping" in said and "stopped by a signal" in said
    assert checkpoint.find(tmp_path).step == len(records_so_far(tmp_path / LOG)) >= 2


def test_launch_arguments():
    given = ["--nodes", "3", "--gpus", "8", "--", "jobs/stage1.py", "--nodes", "x", "--", "y"]
    config, address, job = launch.parse(given)
    assert (config.nodes, config.bundle, address) == (3, {"CPU": 8.0, "GPU": 8.0}, None)
    assert job == ["jobs/stage1.py", "--nodes", "x", "--", "y"]
    with pytest.raises(ValueError, match="no job: add it behind --"):
        launch.parse(["--nodes", "3"])
    with pytest.raises(ValueError, match=r"job 'jobs/stage9.py': no such file"):
        launch.parse(["--", "jobs/stage9.py"])


SHIMS = {
    "scontrol": '[[ $1 == show ]] && printf "a\\nb\\n" || echo "scontrol $*" >> "$SAID"',
    "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done; exit "$CODE"',
    "deepspeed": 'cat "$2" >> "$SAID"; shift 2; echo "deepspeed $*" >> "$SAID"',
}


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (143, True)])
def test_slurm_script(tmp_path, code, requeued):
    """No Slurm here: its commands stand-ins, the script is the one that ships."""
    for name, body in SHIMS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    said = tmp_path / "said"
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": str(said), "CODE": str(code)}
    env |= {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "n[1-2]"}
    env |= {"SLURM_JOB_ID": "20007", "SLURM_GPUS_ON_NODE": "8"}
    script = ["bash", str(DEPLOY / "slurm_train.sh")]
    job = ["jobs/stage1.py", "--out", "/a b"]
    done = subprocess.run([*script, *job], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    master = "--master_addr a --master_port 20007 jobs/stage1.py --out /a b"
    lines = said.read_text().splitlines()
    hosts = ["a slots=8", "b slots=8"]
    starts = [f"deepspeed --no_ssh --node_rank {i} {master}" for i in (0, 1)]
    again = ["scontrol requeue 20007"] if requeued else []
    assert lines == [*hosts, starts[0], *hosts, starts[1], *again]
    none = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    assert none.returncode == 2 and "error: no job given" in none.stderr
