"""Training on two machines whose names lead to loopback, and whose link is cut in mid-step."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
from tests.two_machines import NAMES, Machines, two_machines

STEPS, LIMIT = 24, 60


@pytest.fixture
def machines():
    with two_machines() as made:
        yield made


def start(machines: Machines, hosts: Path, arguments: list[str]) -> list[subprocess.Popen]:
    """A launcher on each machine, as a person without ssh starts it; it writes to a file, since a
    pipe would also wait for what it has left behind.
    """
    deepspeed = shutil.which("deepspeed", path=Path(sys.executable).parent) or "deepspeed"
    options = ["--hostfile", str(hosts), "--no_ssh", "--master_addr", NAMES[0]]
    options += ["--master_port", str(free_port())]
    return [
        subprocess.Popen(
            machines.inside(
                index,
                [sys.executable, deepspeed, *options, "--node_rank", str(index), *arguments],
            ),
            cwd=ROOT, env=ENV, stdout=open(said(hosts, index), "w"), stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for index in (0, 1)
    ]  # fmt: skip


def said(hosts: Path, index: int) -> Path:
    return hosts.with_name(f"said-{index}")


def ended(processes: list[subprocess.Popen], limit: float) -> float:
    """Seconds until they have ended; none is left behind, whatever happens."""
    begun = time.monotonic()
    try:
        for process in processes:
            process.wait(timeout=limit)
        return time.monotonic() - begun
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.slow
def test_a_link_that_is_cut_frees_both_machines_and_the_run_resumes(machines, tmp_path: Path):
    tiny_clip(tmp_path / "clip")
    capfilt_output(tmp_path / "data", shards=2, samples=20)
    whole, out, hosts = tmp_path / "whole", tmp_path / "out", tmp_path / "hosts"
    hosts.write_text("".join(f"{name} slots=1\n" for name in NAMES))
    more = ("--zero.stage", "2", "--zero.timeout-s", str(LIMIT))
    arguments = command(tmp_path, "stage1", out, STEPS, *more)
    processes = start(machines, hosts, arguments)
    try:
        wait_for_step(out, 6, processes[0])
    except AssertionError:
        pytest.fail(said(hosts, 0).read_text())
    machines.link("down")
    took = ended(processes, 3 * LIMIT)
    texts = [said(hosts, index).read_text() for index in (0, 1)]
    assert all(process.returncode not in (0, None) for process in processes), texts
    assert took < LIMIT, (took, texts)
    for text in texts:
        assert "lost the other ranks" in text or "has not heard of rank" in text, text
    machines.link("up")
    again = start(machines, hosts, arguments)
    ended(again, 600)
    texts = [said(hosts, index).read_text() for index in (0, 1)]
    assert [process.returncode for process in again] == [0, 0], texts
    assert "resuming from" in texts[0]
    done = run(launcher(command(tmp_path, "stage1", whole, STEPS, *more), 2))
    assert done.returncode == 0, done.stderr
    assert curve(out) == curve(whole)
