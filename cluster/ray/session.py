"""The Ray that a job runs on: a cluster's or a local one, and its room for model workers."""

import contextlib
import functools
import json
import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray

from cluster.ray.reserve import wait_for_room

_KIND = "accelerator_type:"
_START_ATTEMPTS = 3
_EXCLUDES = [".venv", ".git", "runs", "**/__pycache__", ".mypy_cache", ".ruff_cache"]


@dataclass(frozen=True, slots=True)
class RayConfig:
    """The Ray to use, and its model workers.

    Attributes:
        address: address of a running cluster (auto, HOST:PORT, ray://...); None takes that of
            RAY_ADDRESS, which ``ray job submit`` sets, and without it starts a local Ray.
        workers: number of model workers; 0 takes one per GPU, or per CPU where there is no GPU.
        threads: CPU threads of a worker; another number splits sums otherwise, so bits may change.
        per_actor: shards under way per worker.
        retries: runs that a shard gets after it lost its worker, before the shard is suspected.
        device: device of the model workers. ``gpu`` waits until a node with a GPU is there, for
            which an autoscaler starts one; ``auto`` takes GPUs where there are some and the CPU
            where there are none, and is refused on a cluster that has no GPU now, since the device
            of an output is decided once.
    """

    address: str | None = None
    workers: int = 0
    threads: int = 1
    per_actor: int = 3
    retries: int = 3
    device: Literal["auto", "cpu", "gpu"] = "auto"

    def __post_init__(self) -> None:
        for name, least in (("workers", 0), ("threads", 1), ("per_actor", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least}")


@dataclass(frozen=True, slots=True)
class Resources:
    """The cluster's room for model workers.

    Attributes:
        actors: number of workers that there is room for now; nodes may come and go.
        cpus, gpus: CPUs and GPUs that each of them reserves.
        device: ``cpu``, or the kinds of GPU.
    """

    actors: int
    cpus: float
    gpus: float
    device: str

    def options(self) -> dict[str, Any]:
        """The options with which an actor asks Ray for its resources."""
        asked: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.device.startswith(_KIND) and "," not in self.device:
            asked["accelerator_type"] = self.device.removeprefix(_KIND)
        return asked


@contextlib.contextmanager
def session(config: RayConfig, root: Path) -> Iterator[Resources]:
    """Connect to the cluster, or start a local Ray that lives as long as this context.

    Waits until there is room for one model worker on the device that the configuration names.

    Args:
        root: folder of the clone, from which workers import.

    Raises:
        ValueError: a cluster address at which nobody answers, or a device that is not there.
    """
    with connected(config, root) as is_local:
        yield _resources(config, is_local)


@contextlib.contextmanager
def connected(config: RayConfig, root: Path) -> Iterator[bool]:
    """The connection of ``session`` alone, whatever nodes there are; gives whether Ray is local.

    Raises:
        ValueError: a cluster address at which nobody answers.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    if address:
        _connect(address, root)
    else:
        _start_local(config, root)
    try:
        yield not address
    finally:
        ray.shutdown()
        for name, value in before.items():  # Ray sets the mode for all children
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _connect(address: str, root: Path) -> None:
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    environment = None if inside_job else {"working_dir": str(root), "excludes": _EXCLUDES}
    try:
        ray.init(
            address,
            runtime_env=environment,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, TimeoutError) as unreachable:
        first = str(unreachable).strip().splitlines()[0]
        raise ValueError(
            f"address {address!r}: no Ray cluster answers there ({first}); start one, or unset "
            "RAY_ADDRESS to run on a local Ray"
        ) from unreachable


def _start_local(config: RayConfig, root: Path) -> None:
    """A Ray on loopback with a token of its own.

    A local Ray asks for a token by default, and writes ``~/.ray/auth_token`` where none is given,
    after which other Rays on this machine ask for that one: a token in the environment of this
    process leaves nothing behind.
    """
    os.environ.setdefault("RAY_AUTH_TOKEN", _token())
    cores = len(os.sched_getaffinity(0))
    actors = config.workers or max(1, cores // config.threads)
    settings: dict[str, Any] = {
        # One more than the actors take: the reading and writing tasks need a place, and the
        # operating system shares the cores better than a reservation would.
        "num_cpus": actors * config.threads + 1,
        "include_dashboard": False,
        "object_store_memory": 1 << 30,
        "_node_ip_address": "127.0.0.1",
        "runtime_env": {"env_vars": {"PYTHONPATH": str(root)}},
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        # Ray's default is 15: anything else that runs here would starve the models.
        "_system_config": {"worker_niceness": 0},
    }
    for _ in range(_START_ATTEMPTS):
        try:
            ray.init("local", **settings)
            return
        except Exception as late:  # Ray raises the bare class when its node misses 30 s
            ray.shutdown()
            if "timed out during startup" not in str(late):
                raise
    raise ValueError(
        f"the local Ray did not start within 30 s, {_START_ATTEMPTS} times: other programs hold "
        "this machine's cores; start again when they are done"
    )


@functools.cache
def _token() -> str:
    """One token per process: Ray reads it once."""
    return secrets.token_hex(32)


def _resources(config: RayConfig, is_local: bool) -> Resources:
    # Half of the threads are reserved: when nodes are lost, the tasks still find a place.
    cpus, gpus = config.threads / 2, int(_wants_gpu(config, is_local))
    total = ray.cluster_resources()
    if total.get("CPU", 0) < cpus or total.get("GPU", 0) < gpus:
        wait_for_room({"CPU": cpus} | ({"GPU": 1.0} if gpus else {}))
        total = ray.cluster_resources()
    kinds = sorted(name for name in total if name.startswith(_KIND))
    device = (",".join(kinds) or "gpu") if gpus else "cpu"
    return Resources(room(config, device), cpus, gpus, device)


def _wants_gpu(config: RayConfig, is_local: bool) -> bool:
    """Whether model workers are to have GPUs.

    Raises:
        ValueError: this machine has no GPU, or the cluster has none now and nobody has said
            whether one will come.
    """
    there = ray.cluster_resources().get("GPU", 0) > 0
    if config.device == "auto" and not there and not is_local:
        raise ValueError(
            "--device auto: no node of the cluster has a GPU now, and the device of an output is "
            "decided once; give --device gpu to wait for a node with one (an autoscaler starts "
            "it), or --device cpu to make the captions on CPUs"
        )
    if config.device == "gpu" and not there and is_local:
        raise ValueError(
            "--device gpu: Ray finds no GPU on this machine; give --device cpu, or the --address "
            "of a cluster"
        )
    return there if config.device == "auto" else config.device == "gpu"


def room(config: RayConfig, device: str) -> int:
    """The number of model workers that there is room for now; at least one, to wait for.

    Args:
        device: the device that the run began on, as ``Resources`` has it. The run goes on with
            no other: another kind of GPU may give other bytes.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if device != "cpu":
        kinds = device.split(",") if device.startswith(_KIND) else ["GPU"]
        gpus = sum(int(node.get("GPU", 0)) for node in nodes if any(k in node for k in kinds))
        return config.workers or max(1, gpus)  # more than there are: an autoscaler may bring them
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    places = sum(number // config.threads for number in cpus)
    if sum(cpus) - places * config.threads < 1:
        places -= 1  # one CPU stays free for the tasks
    return max(1, min(config.workers or places, places))


def describe_cluster() -> str:
    """One line for the console: nodes and resources of the connected Ray."""
    total = {key: value for key, value in ray.cluster_resources().items() if key in ("CPU", "GPU")}
    return f"{len(ray.nodes())} node(s), {json.dumps(total)}"
