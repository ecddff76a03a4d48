"""Model workers on Ray: as many as the cluster has room for at the moment.

Nodes come and go in the middle of a run, so nothing is decided once. Workers are made where there
is room and taken away where there is none left; one gets work only when it has answered, so that
nothing waits for a worker that never finds a place. One that dies is replaced.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.ranks.gpus import why_no_gpu
from cluster.ray.session import RayConfig, Resources, describe_cluster, room

PERIOD = 2.0  # seconds between two looks at the cluster
_PATIENCE = 60.0  # seconds without any worker after which it is said


@dataclass(eq=False)
class Worker:
    """An actor that holds the models.

    Attributes:
        handle: Ray's handle of the actor.
        answer: reference that arrives when the models are loaded; None from then on.
        load: number of items under way on it.
        loaded: whether it has ever had its models.
        dismissed: whether the pool has ended it; an item that it loses is then not to blame.
        node: Ray's id of the node that it is on, once it has answered.
    """

    handle: Any
    answer: Any
    load: int = 0
    loaded: bool = False
    dismissed: bool = False
    node: str = ""


class Pool:
    """The workers of a map.

    Args:
        make: maker of the object that a worker holds, with a method ``process(sent)``.
    """

    def __init__(self, make: Callable[[], Any], config: RayConfig, resources: Resources) -> None:
        self._make, self._config, self._device = make, config, resources.device
        self._actor: Any = ray.remote(_Holder).options(**resources.options())
        self._workers: list[Worker] = []
        self._deaths = self._most = 0  # in a row, of workers that never answered; places seen
        self._look = self._said = time.monotonic()

    def fit(self, items: int) -> None:
        """Make workers where there is room and one of ``items`` for them; drop those without room.

        Raises:
            RuntimeError: they die before they have loaded the models, again and again.
        """
        now = time.monotonic()
        if now < self._look:
            return
        self._look = now + PERIOD
        places = room(self._config, self._device)
        self._most = max(self._most, places)
        if self._deaths > 10 + 3 * self._most:
            raise RuntimeError(
                f"model workers died {self._deaths} times before they had loaded the models: they "
                "may be out of memory (see Ray's log); give them more, or fewer of them: --workers"
            )
        while len(self._workers) < min(places, items):
            handle = self._actor.remote(self._make, self._config.threads)
            self._workers.append(Worker(handle, handle.ready.remote()))
        while len(self._workers) > places:
            self._dismiss(min(self._workers, key=lambda w: (w.answer is None, w.load)))
        self._speak(now)

    def free(self) -> Worker | None:
        """The worker with the least to do, where it may have more."""
        ready = [worker for worker in self._workers if worker.answer is None]
        worker = min(ready, key=lambda w: w.load, default=None)
        return worker if worker and worker.load < self._config.per_actor else None

    def first(self) -> Worker:
        """Any worker that has answered; waits for it."""
        while (worker := self.free()) is None:
            self.fit(1)
            self.wait([])
        return worker

    def wait(self, refs: Sequence[Any]) -> list[Any]:
        """Those of ``refs`` that have arrived; returns at the latest after ``PERIOD``.

        Raises:
            Exception: a worker failed to build its models; this is its own exception.
        """
        asked = {worker.answer: worker for worker in self._workers if worker.answer is not None}
        if not refs and not asked:
            time.sleep(max(0.0, self._look - time.monotonic()))
            return []
        arrived, _ = ray.wait([*refs, *asked], num_returns=1, timeout=PERIOD)
        for ref in arrived:
            if ref in asked:
                self._hear(asked[ref])
        return [ref for ref in arrived if ref not in asked]

    def doubt(self, worker: Worker) -> None:
        """Ask a worker that lost an item whether it is alive."""
        if worker.answer is None:
            worker.answer = worker.handle.ready.remote()

    def memory(self) -> dict[str, int]:
        """Bytes of main memory that each node has in Ray's books, by the node's id."""
        nodes = [node for node in ray.nodes() if node["Alive"]]
        return {node["NodeID"]: int(node["Resources"].get("memory", 0)) for node in nodes}

    def stop(self) -> None:
        """End all of them."""
        while self._workers:
            self._dismiss(self._workers[0])

    def _hear(self, worker: Worker) -> None:
        try:
            worker.node = get(worker.answer)
        except RayError:  # it died, or its node did
            self._workers.remove(worker)
            self._deaths += not worker.loaded
            self._look = 0.0
        else:
            worker.answer, worker.loaded, self._deaths = None, True, 0

    def _dismiss(self, worker: Worker) -> None:
        worker.dismissed = True
        self._workers.remove(worker)
        ray.kill(worker.handle)

    def _speak(self, now: float) -> None:
        """Say it where nothing can go on."""
        if any(worker.answer is None for worker in self._workers):
            self._said = now
        elif now - self._said > _PATIENCE:
            self._said = now
            logging.getLogger(__name__).warning(
                "no model worker has answered for %.0f s: %d are waiting for a place or loading; "
                "the cluster has %s", _PATIENCE, len(self._workers), describe_cluster(),
            )  # fmt: skip


def get(ref: Any) -> Any:
    """The result; the application's own error as itself, a lost worker as ``RayError``."""
    try:
        return ray.get(ref)
    except RayTaskError as failed:
        cause = getattr(failed, "cause", None)
        raise (cause if isinstance(cause, Exception) else failed) from failed


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a worker of Ray's. Errors are the application's, unless the clone that Ray
    unpacked for this worker is gone (another node of the same machine took it along): then the
    process ends, and counts as lost.
    """
    try:
        return function(*arguments)
    except Exception:
        try:
            os.getcwd()
        except FileNotFoundError:
            os._exit(1)
        raise


class _Holder:
    """The actor: holds what ``make`` builds, with as many threads as it was given."""

    def __init__(self, make: Callable[[], Any], threads: int) -> None:
        self._make, self._threads = make, threads
        self._held: Any = None

    def ready(self) -> str:
        """Load the models; Ray's id of this node.

        Not at the start: an error there would look like a lost worker.
        """
        if self._held is None:
            call(self._load)
        return ray.get_runtime_context().get_node_id()

    def process(self, sent: Any) -> Any:
        return call(self._held.process, sent)

    def _load(self) -> None:
        lent = ray.get_gpu_ids()
        if not lent:  # a CPU worker on a node with GPUs computes on the CPU, as the plan says
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        import torch

        if lent and not torch.cuda.is_available():
            raise ValueError(
                f"Ray lent GPU {lent[0]} of node {ray.util.get_node_ip_address()} to a model "
                f"worker, but torch sees none there ({why_no_gpu()}); in a container, set "
                "NVIDIA_VISIBLE_DEVICES=all and use the NVIDIA runtime; or give --device cpu"
            )
        torch.set_num_threads(self._threads)
        self._held = self._make()
