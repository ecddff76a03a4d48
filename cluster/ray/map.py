"""A bounded map over work items on Ray: task, actor, task, with the actors holding the models.

    prepare(item) ─┬─ sent ──> actor.process(sent) ──┐
     task, CPU     └─ kept ──────────────────────────┴─> finish(kept, processed)   task, CPU

At most ``per_actor`` items per actor are under way, so memory is bounded by construction and work
is pulled by whoever is free. An item is prepared with its memory reserved: on the node of its actor
where that has it, so that it does not travel, else on any that has; not on a small head.
An item whose worker is lost runs again on another; an error of the application is never retried: it
ends the map. An item that keeps losing its workers waits until the others are done; then, alone, it
is halved down to the parts that kill whoever touches them.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.ray.pool import Pool, Worker, call, get
from cluster.ray.session import RayConfig, Resources

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Bisection:
    """Division of an item into parts, to search for those that kill workers by halving.

    Attributes:
        count: item -> number of its parts; runs in a task.
        only: (item, first, end) -> an item of these parts alone.
        without: (item, parts) -> the item that leaves these parts out and says so in its result.
    """

    count: Callable[[Any], int]
    only: Callable[[Any, int, int], Any]
    without: Callable[[Any, frozenset[int]], Any]


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages that each item passes through.

    Attributes:
        prepare: item -> (kept, sent); runs in a task.
        actor: maker of an object with ``process(sent)``; called once in each actor.
        finish: (kept, processed) -> a small result; runs in a task.
        bisection: division of an item into parts; without it, an item that keeps killing workers
            ends the map.
        memory: item -> bytes of main memory that its preparation takes; None reserves none.
    """

    prepare: Callable[[Any], tuple[Any, Any]]
    actor: Callable[[], Any]
    finish: Callable[[Any, Any], Any]
    bisection: Bisection | None = None
    memory: Callable[[Any], int] | None = None


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
    run = _Map(stages, config, resources)
    try:
        suspects = run.all(items, done)
        for item in suspects:
            run.alone(item, done)
    finally:
        run.pool.stop()


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
    task: Any = ray.remote(num_cpus=1, max_retries=config.retries, retry_exceptions=False)(call)
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
            result = get(ready)
        except RayError as lost:
            raise RuntimeError(
                f"{item} lost its workers {config.retries + 1} times: {lost}"
            ) from lost
        done(item, result)


class _Map:
    """A map under way: its remote functions and its workers."""

    def __init__(self, stages: Stages, config: RayConfig, resources: Resources) -> None:
        # Only lost workers are retried, and once: what they were doing may be what killed them.
        task: dict[str, Any] = {"num_cpus": 0.25, "max_retries": 1, "retry_exceptions": False}
        self.two: Any = ray.remote(**task, num_returns=2)(call)
        self.one: Any = ray.remote(**task)(call)
        self.prepare, self.finish = ray.put(stages.prepare), ray.put(stages.finish)
        self.bisection, self.retries = stages.bisection, config.retries
        self.memory = stages.memory
        self.pool = Pool(stages.actor, config, resources)

    def all(self, items: Sequence[Any], done: Callable[[Any, Any], None]) -> list[Any]:
        """Run every item; returns those that lost their workers more than ``retries`` times."""
        waiting = [(item, 0) for item in reversed(items)]  # with how often it was lost
        under_way: dict[Any, tuple[Any, int, Worker]] = {}
        suspects = []
        while waiting or under_way:
            self.pool.fit(len(waiting) + len(under_way))
            while waiting and (worker := self.pool.free()):
                item, losses = waiting.pop()
                under_way[self.submit(item, worker)] = (item, losses, worker)
            for ref in self.pool.wait(list(under_way)):
                item, losses, worker = under_way.pop(ref)
                worker.load -= 1
                if self.arrived(ref, item, worker, done):
                    continue
                losses += not worker.dismissed
                if losses > self.retries:
                    suspects.append(item)
                else:
                    waiting.append((item, losses))
        return suspects

    def arrived(
        self, ref: Any, item: Any, worker: Worker, done: Callable[[Any, Any], None]
    ) -> bool:
        """Hand over a result; False where a worker was lost instead."""
        try:
            result = get(ref)
        except RayActorError:
            self.pool.doubt(worker)
            return False
        except RayError:
            return False
        done(item, result)
        return True

    def alone(self, item: Any, done: Callable[[Any, Any], None]) -> None:
        """Find the parts of a suspect that kill workers, and run the rest of it."""
        bad = self.killers(item)
        logging.getLogger(__name__).warning(
            "%s lost its workers %d times; parts left out: %s",
            item, self.retries + 1, sorted(bad) or "none",
        )  # fmt: skip
        rest = self.bisection.without(item, bad) if self.bisection and bad else item
        if self.all([rest], lambda _, result: done(item, result)):
            raise RuntimeError(
                f"{item} keeps losing its workers and no sample of it is to blame: they may be "
                "out of memory (see Ray's log); give them more, or a smaller --config.batch-size"
            )

    def killers(self, item: Any) -> frozenset[int]:
        """Parts that killed their workers twice, by halving; each probe runs by itself."""
        if self.bisection is None:
            return frozenset()
        open_ranges = [(0, get(self.one.remote(self.bisection.count, item)))]
        bad = set()
        while open_ranges:
            first, end = open_ranges.pop()
            if first == end or not self._kills(self.bisection.only(item, first, end)):
                continue
            if end - first > 1:
                middle = (first + end) // 2
                open_ranges += [(middle, end), (first, middle)]
            elif self._kills(self.bisection.only(item, first, end)):  # once may be another's doing
                bad.add(first)
        return frozenset(bad)

    def _kills(self, item: Any) -> bool:
        """Whether preparing and processing an item loses a worker."""
        worker = self.pool.first()
        place = self.place(item, worker)
        _, sent = self.two.options(**place, max_retries=0).remote(self.prepare, item)
        try:
            get(worker.handle.process.remote(sent))
        except RayActorError:
            self.pool.doubt(worker)
            return True
        except RayError:
            return True
        return False

    def submit(self, item: Any, worker: Worker) -> Any:
        """Send an item on its way; the reference of its result."""
        worker.load += 1
        place = self.place(item, worker)
        kept, sent = self.two.options(**place).remote(self.prepare, item)
        return self.one.remote(self.finish, kept, worker.handle.process.remote(sent))

    def place(self, item: Any, worker: Worker) -> dict[str, Any]:
        """Options that put an item's preparation on its worker's node, where that has the memory
        for it, else on any that has; never more memory than the largest node's.
        """
        room = self.pool.memory()
        need = 0 if self.memory is None else min(self.memory(item), max(room.values()))
        place: dict[str, Any] = {"memory": need} if need else {}
        if room.get(worker.node, 0) >= need:
            beside = NodeAffinitySchedulingStrategy(worker.node, soft=True)
            place["scheduling_strategy"] = beside
        return place
