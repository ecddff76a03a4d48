"""A bounded map over work items on Ray: task, actor, task, with the actors holding the models.

    prepare(item) ─┬─ sent ──> actor.process(sent) ──┐
     task, CPU     └─ kept ──────────────────────────┴─> finish(kept, processed)   task, CPU

At most ``per_actor`` items per actor are under way, so memory is bounded by construction and work
is pulled by whoever is free. Lost workers are replaced and their item runs again; an error of the
application is never retried: it ends the map. An item that keeps losing its workers waits until
the others are done; then, alone, it is halved down to the parts that kill whoever touches them.
"""

import contextlib
import functools
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

Item = TypeVar("Item")
_START_ATTEMPTS = 3
_EXCLUDES = [".venv", ".git", "runs", "**/__pycache__", ".mypy_cache", ".ruff_cache"]


@dataclass(frozen=True, slots=True)
class RayConfig:
    """Where the map runs.

    Attributes:
        address: of a running cluster (``auto``, ``HOST:PORT``, ``ray://...``); None uses
            ``RAY_ADDRESS`` (set inside ``ray job submit``), and where that is not set either, a
            local Ray of our own.
        workers: model actors; 0 takes one per GPU, or one per CPU where there is no GPU.
        threads: CPU threads of an actor. More change how sums are split, so bits may change.
        per_actor: items under way per actor.
        retries: how often an item whose workers were lost runs again before it is suspected.
    """

    address: str | None = None
    workers: int = 0
    threads: int = 1
    per_actor: int = 3
    retries: int = 3

    def __post_init__(self) -> None:
        for name, least in (("workers", 0), ("threads", 1), ("per_actor", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least}")


@dataclass(frozen=True, slots=True)
class Resources:
    """What the cluster lends: actors, and the CPUs and GPUs of each."""

    actors: int
    cpus: float
    gpus: float
    device: str


@contextlib.contextmanager
def session(config: RayConfig, root: Path) -> Iterator[Resources]:
    """Connect to the cluster, or start a local Ray that lives as long as this context.

    Args:
        root: the clone, which workers import from.

    Raises:
        ValueError: a cluster address at which nobody answers, or with no CPU to spare.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    if address:
        _connect(address, root)
    else:
        _start_local(config, root)
    try:
        yield _resources(config)
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


def _resources(config: RayConfig) -> Resources:
    total = ray.cluster_resources()
    cpus, gpus = int(total.get("CPU", 0)), int(total.get("GPU", 0))
    if cpus == 0:
        raise ValueError("the Ray cluster has no CPUs; start it with --num-cpus")
    kinds = sorted(name for name in total if name.startswith("accelerator_type:"))
    if gpus:
        return Resources(config.workers or gpus, config.threads, 1, ",".join(kinds) or "gpu")
    room = max(1, (cpus - 1) // config.threads)  # one CPU stays free for the tasks
    actors = min(config.workers or room, room)
    # Half of what it uses is reserved: a node that has just died may be counted above, and workers
    # that found no place, or left none to the tasks, would let the map stand still.
    return Resources(actors, config.threads / 2, 0, "cpu")


@dataclass(frozen=True, slots=True)
class Parts:
    """How an item can be looked at in parts, to find what in it kills workers.

    Attributes:
        count: item -> how many parts it has; runs in a task.
        only: (item, first, end) -> an item of these parts alone.
        without: (item, parts) -> the item that leaves these parts out and says so in its result.
    """

    count: Callable[[Any], int]
    only: Callable[[Any, int, int], Any]
    without: Callable[[Any, frozenset[int]], Any]


@dataclass(frozen=True, slots=True)
class Stages:
    """What happens to an item.

    Attributes:
        prepare: item -> (kept, sent); runs in a task.
        actor: makes an object with ``process(sent)``; called once in each actor.
        finish: (kept, processed) -> a small result; runs in a task.
        parts: how to find what kills workers; without it, an item that keeps doing so ends the map.
    """

    prepare: Callable[[Any], tuple[Any, Any]]
    actor: Callable[[], Any]
    finish: Callable[[Any, Any], Any]
    parts: Parts | None = None


def map_shards(
    items: Sequence[Item],
    stages: Stages,
    config: RayConfig,
    resources: Resources,
    done: Callable[[Item, Any], None],
) -> None:
    """Run all stages for every item; ``done(item, result)`` is called here as each one ends.

    Raises:
        Exception: whatever the application raised, from the first item that failed.
        RuntimeError: an item lost its workers again and again, and no part of it is to blame.
    """
    if not items:
        return
    run = _Map(stages, config, resources, min(resources.actors, len(items)))
    try:
        suspects = run.all(items, done)
        for item in suspects:
            run.alone(item, done)
    finally:
        run.stop()


def map_tasks(
    items: Sequence[Item],
    function: Callable[[Item], Any],
    config: RayConfig,
    done: Callable[[Item, Any], None],
) -> None:
    """``done(item, function(item))`` for every item, one task each, no more than two a CPU at once.

    Raises:
        Exception: whatever the application raised, from the first item that failed.
        RuntimeError: an item lost its workers more often than ``config.retries``.
    """
    task: Any = ray.remote(num_cpus=1, max_retries=config.retries, retry_exceptions=False)(_call)
    sent, waiting = ray.put(function), list(reversed(items))
    capacity = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    under_way: dict[Any, Item] = {}
    while waiting or under_way:
        while waiting and len(under_way) < capacity:
            item = waiting.pop()
            under_way[task.remote(sent, item)] = item
        (ready,), _ = ray.wait(list(under_way), num_returns=1)
        item = under_way.pop(ready)
        try:
            result = _get(ready)
        except RayError as lost:
            raise RuntimeError(
                f"{item} lost its workers {config.retries + 1} times: {lost}"
            ) from lost
        done(item, result)


def _cause(failed: RayTaskError) -> BaseException:
    cause = getattr(failed, "cause", None)
    return cause if isinstance(cause, Exception) else failed


class _Map:
    """The remote halves of a map and the actors' load."""

    def __init__(
        self, stages: Stages, config: RayConfig, resources: Resources, actors: int
    ) -> None:
        # Only lost workers are retried, and once: what they were doing may be what killed them.
        task: dict[str, Any] = {"num_cpus": 0.25, "max_retries": 1, "retry_exceptions": False}
        self.two: Any = ray.remote(**task, num_returns=2)(_call)
        self.one: Any = ray.remote(**task)(_call)
        self.prepare, self.finish = ray.put(stages.prepare), ray.put(stages.finish)
        self.parts, self.retries = stages.parts, config.retries
        holder = ray.remote(_Holder).options(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_restarts=-1, max_task_retries=1
        )
        self.actors: list[Any] = [
            holder.remote(stages.actor, config.threads) for _ in range(actors)
        ]
        self.load = [0] * actors
        self.capacity = actors * config.per_actor

    def all(self, items: Sequence[Any], done: Callable[[Any, Any], None]) -> list[Any]:
        """Run every item; returns those that lost their workers more than ``retries`` times."""
        waiting = [(item, 0) for item in reversed(items)]  # with how often it was lost
        under_way: dict[Any, tuple[Any, int, int]] = {}
        suspects = []
        while waiting or under_way:
            while waiting and len(under_way) < self.capacity:
                item, losses = waiting.pop()
                ref, index = self.submit(item)
                under_way[ref] = (item, losses, index)
            (ready,), _ = ray.wait(list(under_way), num_returns=1)
            item, losses, index = under_way.pop(ready)
            self.load[index] -= 1
            try:
                result = _get(ready)
            except RayError:
                if losses == self.retries:
                    suspects.append(item)
                else:
                    waiting.append((item, losses + 1))
                continue
            done(item, result)
        return suspects

    def alone(self, item: Any, done: Callable[[Any, Any], None]) -> None:
        """Find the parts of a suspect that kill workers, and run the rest of it."""
        bad = self.killers(item)
        logging.getLogger(__name__).warning(
            "%s lost its workers %d times; parts left out: %s",
            item, self.retries + 1, sorted(bad) or "none",
        )  # fmt: skip
        rest = self.parts.without(item, bad) if self.parts and bad else item
        if self.all([rest], lambda _, result: done(item, result)):
            raise RuntimeError(
                f"{item} keeps losing its workers and no sample of it is to blame: they may be "
                "out of memory (see Ray's log); give them more, or a smaller --config.batch-size"
            )

    def killers(self, item: Any) -> frozenset[int]:
        """Parts that killed their workers twice, by halving; each probe runs by itself."""
        if self.parts is None:
            return frozenset()
        open_ranges = [(0, _get(self.one.remote(self.parts.count, item)))]
        bad = set()
        while open_ranges:
            first, end = open_ranges.pop()
            if first == end or not self._kills(self.parts.only(item, first, end)):
                continue
            if end - first > 1:
                middle = (first + end) // 2
                open_ranges += [(middle, end), (first, middle)]
            elif self._kills(self.parts.only(item, first, end)):  # once may be another's doing
                bad.add(first)
        return frozenset(bad)

    def _kills(self, item: Any) -> bool:
        """Whether preparing and processing an item loses a worker."""
        _, sent = self.two.options(max_retries=0).remote(self.prepare, item)
        try:
            _get(self.actors[0].process.options(max_task_retries=0).remote(sent))
        except RayError:
            return True
        return False

    def submit(self, item: Any) -> tuple[Any, int]:
        index = self.load.index(min(self.load))
        self.load[index] += 1
        kept, sent = self.two.remote(self.prepare, item)
        processed = self.actors[index].process.remote(sent)
        return self.one.remote(self.finish, kept, processed), index

    def stop(self) -> None:
        for handle in self.actors:
            ray.kill(handle)


def _get(ref: Any) -> Any:
    """The result; the application's own error as itself, a lost worker as ``RayError``."""
    try:
        return ray.get(ref)
    except RayTaskError as failed:
        raise _cause(failed) from failed


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Ray wants a plain function; ours are partials, sent once and shared by all tasks."""
    return function(*arguments)


class _Holder:
    """The actor: holds what ``make`` builds, with as many threads as it was given CPUs."""

    def __init__(self, make: Callable[[], Any], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.held = make()

    def process(self, sent: Any) -> Any:
        return self.held.process(sent)


def describe_cluster() -> str:
    """One line for the console: nodes and resources of the connected Ray."""
    total = {key: value for key, value in ray.cluster_resources().items() if key in ("CPU", "GPU")}
    return f"{len(ray.nodes())} node(s), {json.dumps(total)}"
