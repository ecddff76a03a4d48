"""DeepSpeed's launcher on the machines of a Ray cluster, started again when one of them is lost.

    driver (``ray job submit``) ── one actor a machine ── deepspeed.launcher.launch ── its ranks

Ray finds the machines and notices when one is gone; DeepSpeed's own launcher starts the ranks.
Nothing of a run lives here: the training job resumes from its last checkpoint by itself.
"""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.ranks.dist import StopSignal
from cluster.ranks.supervise import SUPERVISOR

_ROOT = Path(__file__).resolve().parents[2]
_POLL = 0.5
_MISTAKE = 2
"""Exit code of a job that was given something wrong: starting it again would not help."""
LOST = -1000


@dataclass(frozen=True)
class GroupConfig:
    """The machines of a training run.

    Attributes:
        nodes: number of machines; each must have room for all of its ranks.
        gpus: GPUs of each machine, one for each rank; 0 trains on CPUs.
        ranks: ranks of each machine, where it trains on CPUs.
        cpus: CPUs of each machine; 0 takes one for each rank.
        port: port of the first machine, on which ranks find each other; 0 takes a free one.
        restarts: number of restarts in a row after a machine or a rank was lost, before the run
            gives up.
        steady_s: seconds after which a start has held, and restarts are counted from 0 again.
        grace_s: seconds that ranks have to save and end when the run is stopped.
    """

    nodes: int = 1
    gpus: int = 0
    ranks: int = 1
    cpus: int = 0
    port: int = 0
    restarts: int = 10
    steady_s: float = 600.0
    grace_s: float = 600.0

    def __post_init__(self) -> None:
        least = {"nodes": 1, "gpus": 0, "ranks": 1, "cpus": 0, "port": 0, "restarts": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"--{name} {getattr(self, name)}: at least {bound}")

    @property
    def bundle(self) -> dict[str, float]:
        """The resources that one machine must have."""
        bundle = {"CPU": float(self.cpus or max(self.gpus, self.ranks))}
        return bundle | ({"GPU": float(self.gpus)} if self.gpus else {})


def run(config: GroupConfig, command: Sequence[str]) -> int:
    """Run a training job on all machines until it ends; Ray is connected already.

    Args:
        command: the job's script, relative to the clone, and its arguments.

    Returns:
        The job's exit code: 0 at its end or after a stop, 1 where it failed too often.
    """
    stop = StopSignal()
    failed = 0
    while True:
        begun = time.monotonic()
        code = _attempt(config, command, stop)
        if stop.raised or code in (0, _MISTAKE):
            return code
        failed = 1 if time.monotonic() - begun > config.steady_s else failed + 1
        what = "a machine was lost" if code == LOST else f"a rank ended with code {code}"
        if failed > config.restarts:
            _say(f"{what}, {failed} times in a row: giving up; the same command resumes")
            return 1
        _say(f"{what}: starting all ranks again ({failed} of {config.restarts})")


def _attempt(config: GroupConfig, command: Sequence[str], stop: StopSignal) -> int:
    """Start the ranks on all machines, and wait until they have ended."""
    group = placement_group([config.bundle] * config.nodes, strategy="STRICT_SPREAD")
    nodes: list[Any] = []
    try:
        if not _wait_for(group, config, stop):
            return 0
        nodes = [_actor(config, group, index) for index in range(config.nodes)]
        _start(config, nodes, command)
        return _follow(config, nodes, stop)
    except RayError:  # before anything has started, or while it was started
        return LOST
    finally:
        _end(nodes)
        remove_placement_group(group)


def _wait_for(group: Any, config: GroupConfig, stop: StopSignal) -> bool:
    """Wait until the cluster has the machines; False where the run was stopped before."""
    waited = 0
    while not group.wait(timeout_seconds=2):
        if stop.raised:
            return False
        if waited % 30 == 0:
            each = ", ".join(f"{v:g} {k}" for k, v in config.bundle.items())
            _say(f"waiting for {config.nodes} machines with {each} each")
        waited += 2
    return True


def _actor(config: GroupConfig, group: Any, index: int) -> Any:
    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    return _Node.options(  # type: ignore[attr-defined]
        num_cpus=config.bundle["CPU"], num_gpus=config.gpus, scheduling_strategy=place
    ).remote()


def _start(config: GroupConfig, nodes: Sequence[Any], command: Sequence[str]) -> None:
    devices = ray.get([node.devices.remote(config.gpus, config.ranks) for node in nodes])
    address, port = ray.get(nodes[0].address.remote(config.port))
    names = {f"node{index}": found for index, found in enumerate(devices)}
    world = base64.urlsafe_b64encode(json.dumps(names).encode()).decode()
    launch = [f"--world_info={world}", f"--master_addr={address}", f"--master_port={port}"]
    threads = max(1, int(config.bundle["CPU"]) // len(devices[0]))
    variables = {"OMP_NUM_THREADS": str(threads)}
    if not config.gpus:
        variables["DS_ACCELERATOR"] = "cpu"
    ray.get(
        [
            node.start.remote([*launch, f"--node_rank={index}", *command], variables)
            for index, node in enumerate(nodes)
        ]
    )


def _follow(config: GroupConfig, nodes: Sequence[Any], stop: StopSignal) -> int:
    """Print what the ranks say until all have ended, or one has failed.

    Returns:
        0, the code of a rank that failed, or ``LOST``.
    """
    codes: list[int | None] = [None] * len(nodes)
    asked = [node.poll.remote() for node in nodes]
    deadline = float("inf")
    while None in codes:
        if stop.raised and deadline == float("inf"):
            _say("stopping: ranks save and end")
            deadline = time.monotonic() + config.grace_s
            _signal(nodes, codes, signal.SIGTERM)
        ready, _ = ray.wait([a for a, c in zip(asked, codes, strict=True) if c is None], timeout=5)
        for index in [asked.index(ref) for ref in ready]:
            lines, codes[index] = _answer(asked[index])
            for line in lines:
                print(line if index == 0 else f"[node {index}] {line}", flush=True)
            if codes[index] is None:
                asked[index] = nodes[index].poll.remote()
        failed = [code for code in codes if code]
        if failed and deadline == float("inf"):  # the others cannot go on alone
            deadline = time.monotonic() + min(15.0, config.grace_s)
            _signal(nodes, codes, signal.SIGTERM)
        if time.monotonic() > deadline:
            break
    failed = [code for code in codes if code]
    if _MISTAKE in failed:
        return _MISTAKE
    return next(iter(failed), 0 if None not in codes else 1)


def _answer(ref: Any) -> tuple[list[str], int | None]:
    try:
        return ray.get(ref)
    except RayError:
        return [], LOST


def _signal(nodes: Sequence[Any], codes: Sequence[int | None], number: int) -> None:
    for node, code in zip(nodes, codes, strict=True):
        if code is None:
            node.signal.remote(number)


def _end(nodes: Sequence[Any]) -> None:
    """Leave no rank behind that could write beside the next start's."""
    ended = [node.end.remote() for node in nodes]
    if ended:
        ray.wait(ended, num_returns=len(ended), timeout=10)
    for node in nodes:
        ray.kill(node)


def _say(text: str) -> None:
    print(f"launch: {text}", flush=True)


@ray.remote
class _Node:
    """One machine of the group: its launcher, and what its ranks say."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        # A file, not a pipe: ranks outlive this actor by the save that they make when it dies.
        self._said = tempfile.NamedTemporaryFile("rb", prefix="isthmus-launch-")  # noqa: SIM115

    def address(self, port: int) -> tuple[str, int]:
        """This machine's address and a port on it."""
        with socket.socket() as probe:
            probe.bind(("", port))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def devices(self, gpus: int, ranks: int) -> list[int]:
        """The GPUs that Ray lends to this actor; on CPUs, as many numbers as ranks."""
        return [int(i) for i in ray.get_gpu_ids()] if gpus else list(range(ranks))

    def start(self, arguments: list[str], variables: dict[str, str]) -> None:
        """Start the launcher."""
        environment = {**os.environ, **variables, SUPERVISOR: str(os.getpid())}
        environment.pop("RAY_JOB_CONFIG_JSON_ENV_VAR", None)
        with open(self._said.name, "ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "deepspeed.launcher.launch", *arguments],
                cwd=_ROOT,
                env=environment,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def poll(self) -> tuple[list[str], int | None]:
        """What the ranks have said since the last call, and the launcher's code once it ended."""
        assert self._process is not None
        time.sleep(_POLL)
        code = self._process.poll()
        lines = self._said.read().decode(errors="replace").splitlines()
        return lines, code

    def end(self) -> None:
        """Kill whatever is left of the launcher and its ranks."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Signal the ranks. Not their launcher: it would kill them 30 seconds later."""
        assert self._process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            for rank in psutil.Process(self._process.pid).children():
                rank.send_signal(number)
