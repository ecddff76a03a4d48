"""The run of an evaluation: data, chunks, answers, scores.

    read data ─ check images ─ cut into chunks ─ answer those without a file ─ score all answers

Every chunk has a file of its own as soon as it is answered. An evaluation that was ended anywhere
goes on with the same command, on any number of workers, and its files are those of an undisturbed
run, byte for byte.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from cluster.ray.map import Stages, map_shards
from cluster.ray.session import RayConfig, Resources, describe_cluster, session
from cluster.storage.base import absolute_url, as_url
from evaluation.chunks.cut import Chunk, cut, digest_of, in_order
from evaluation.chunks.store import AnswerStore
from evaluation.images.remote import Home, local_data
from evaluation.images.unreadable import find_unreadable, name_some, noun
from evaluation.outputs import Outputs
from evaluation.report.machine import commit
from evaluation.tasks.base import Answers, Task
from jobs.evaluation.arguments import EvaluateArgs
from jobs.evaluation.plan import (
    begun,
    plan_of,
    settle,
    threads_of,
    uses_ray,
)
from jobs.evaluation.suite import folders_of, options_of_tasks
from jobs.evaluation.tasks import TaskData, make_task, read_data
from jobs.evaluation.worker import Answering, settings_of
from jobs.predict import Embedder, Writer
from jobs.prediction.arithmetic import Arithmetic
from jobs.prediction.identity import Identity, identify
from modeling.device import pick_device
from modeling.precision import threads_set

_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Evaluated:
    """A task under way.

    Attributes:
        task: the task.
        data: its data.
        plan: what its answers depend on.
        notes: notes on the data.
        done: answers of its complete passes.
        seconds: seconds in which the model answered, over all workers.
    """

    task: Task
    data: TaskData
    plan: dict[str, Any]
    notes: list[str]
    done: dict[str, list[Any]] = field(default_factory=dict)
    seconds: float = 0.0


def evaluate(args: EvaluateArgs, model: Writer | Embedder | None = None) -> dict[str, Any]:
    """Run the tasks, or go on where an earlier run stopped; returns ``results.json``'s content.

    All data are read and all images decoded once before a model is shown the first of them.
    ``results.json`` is written anew after each task.

    Args:
        model: the checkpoint, if the caller has loaded it already.

    Returns:
        The scores of each task under its name (``score`` of the classes in ``evaluation.tasks``),
        with ``notes``, a sentence each, and ``made_with``: what the answers depend on; ``seconds``
        of each task; checkpoint, recipe, data and split; ``table`` and ``row``, and ``candidates``
        (file and score) where they were asked for.

    Raises:
        ValueError, FileNotFoundError: a checkpoint or data file is missing or not what it must be,
            an image cannot be decoded, or OUT holds answers that were made otherwise.
    """
    assert args.checkpoint is not None  # --watch gives one to each evaluation
    identity = identify(args.checkpoint)
    home = Home(args.data, folders := folders_of(args), local_data(args.data, folders))
    results = _header(args, identity)
    args = replace(args, data=home.root)
    data = [read_data(own, task) for task, own in options_of_tasks(args, identity.stage).items()]
    _check_stage(args, data, identity)
    broken = find_unreadable({d.task: d.paths() for d in data}, args.further.skip_unreadable)
    with _store(args) as store, _workers(args, store, data, home, model) as workers:
        model_id = f"{identity.recipe}-{identity.step}"
        tasks = [_open(of_task, model_id, broken) for of_task in data]
        for one in tasks:
            one.plan |= plan_of(one.data, identity, workers.arithmetic)
            if args.work.replace:
                store.remove(one.task.name, one.task.split)
            store.open_plan(one.task.name, one.task.split, one.plan)
        try:
            _answer(args, store, tasks, workers)
        finally:
            for one in tasks:
                _score(one, results)
    return results


# ------------------------------------------------------------------------------ beginning


def _check_stage(args: EvaluateArgs, data: Sequence[TaskData], identity: Identity) -> None:
    for of_task in data:
        if of_task.stage != identity.stage:
            raise ValueError(
                f"--tasks {of_task.task} needs a {of_task.stage} checkpoint; {args.checkpoint} is "
                f"{identity.stage}"
            )


def _header(args: EvaluateArgs, identity: Identity) -> dict[str, Any]:
    """The beginning of ``results.json``."""
    results: dict[str, Any] = {
        "checkpoint": str(args.checkpoint),
        "step": identity.step,
        "recipe": identity.recipe,
        "text": identity.text,
        "data": absolute_url(as_url(args.data)),
        "split": args.split or "test",
        "commit": commit(),
        "seconds": {},
    }
    if args.suite is not None:
        results["suite"] = Path(args.suite).stem
    if args.table is not None:
        results |= {"table": args.table, "row": args.row}
    if args.answering.candidates is not None:
        chosen = {"file": str(args.answering.candidates), "score": args.answering.candidate_score}
        results["candidates"] = chosen
    return results


@contextmanager
def _store(args: EvaluateArgs) -> Iterator[AnswerStore]:
    """The folder of answers; without ``--out`` one that is removed in the end."""
    if args.out is not None:
        yield AnswerStore(absolute_url(as_url(args.out)))
        return
    with tempfile.TemporaryDirectory() as folder:
        yield AnswerStore(folder)


def _open(data: TaskData, model_id: str, broken: Mapping[Path, str]) -> Evaluated:
    """A task without the images that cannot be decoded."""
    left_out = {path: broken[path] for path in data.paths() if path in broken}
    notes = []
    if left_out:
        few = f"{len(left_out)} of {len(data.paths())} {noun(data.paths())}"
        notes = [f"{few} cannot be decoded and were left out: {name_some(left_out)}"]
    data = data.without(broken)
    task = make_task(data, model_id, len(left_out))
    return Evaluated(task, data, {"items": digest_of(task.passes({}))}, notes)


# ------------------------------------------------------------------------------- workers


@dataclass(frozen=True)
class Workers:
    """Those who answer: this process, or workers on a Ray.

    Attributes:
        arithmetic: arithmetic of all of them.
        make: maker of one worker.
        ray, resources: the Ray and its room for workers; None: this process answers.
    """

    arithmetic: Arithmetic
    make: Callable[[], Answering]
    ray: RayConfig | None = None
    resources: Resources | None = None


@contextmanager
def _workers(
    args: EvaluateArgs,
    store: AnswerStore,
    data: Sequence[TaskData],
    home: Home,
    model: Writer | Embedder | None,
) -> Iterator[Workers]:
    """The workers that the options ask for; nothing is loaded yet."""
    settings, before = settings_of(data), begun(args, store, data)
    threads = threads_of(args, before)
    if not uses_ray(args):
        device = pick_device(args.device)
        here = settle(args, before, torch.device(device).type)
        with threads_set(threads):
            yield Workers(here, partial(Answering, args, settings, device, here, model=model))
        return
    kind: Literal["auto", "cpu", "gpu"] = "auto"
    if args.device != "auto":
        kind = "cpu" if args.device == "cpu" else "gpu"
    config = RayConfig(args.work.address, args.work.workers, threads, device=kind)
    with session(config, _ROOT) as resources:
        there = settle(args, before, resources.device)
        device = "cpu" if resources.device == "cpu" else "cuda"
        print(f"{resources.actors} workers ({resources.device}; {describe_cluster()})", flush=True)
        make = partial(Answering, args, settings, device, there, home=home)
        yield Workers(there, make, config, resources)


def _answer(
    args: EvaluateArgs, store: AnswerStore, tasks: Sequence[Evaluated], workers: Workers
) -> None:
    """Answer all chunks that have no file; fills ``done`` of every task."""
    while True:
        passes = [(one, p) for one in tasks for p in one.task.passes(one.done)]
        passes = [(one, p) for one, p in passes if p.name not in one.done]
        if not passes:
            return
        chunks = {
            (one.task.name, p.name): cut(one.task.name, one.task.split, p, args.work.chunk)
            for one, p in passes
        }
        there = {one.task.name: store.answered(one.task.name, one.task.split) for one, _ in passes}
        todo = [
            chunk
            for pieces in chunks.values()
            for chunk in pieces
            if chunk.name not in there[chunk.task]
        ]
        if todo and args.work.score_only:
            raise ValueError(
                f"--score-only: {len(todo)} of {sum(map(len, chunks.values()))} chunks of answers "
                f"are not there, the first is {todo[0].name}; start without --score-only"
            )
        by_task = {one.task.name: one for one in tasks}
        try:
            _answer_chunks(store, todo, workers, by_task)
        finally:  # a task that is complete is scored though another one has failed
            for one, p in passes:
                pieces = chunks[one.task.name, p.name]
                names = store.answered(one.task.name, one.task.split)
                if all(chunk.name in names for chunk in pieces):
                    one.done[p.name] = in_order(p, pieces, [store.read(c) for c in pieces])


def _answer_chunks(
    store: AnswerStore, todo: Sequence[Chunk], workers: Workers, tasks: dict[str, Evaluated]
) -> None:
    """Answer chunks with a progress bar, here or on the connected Ray."""
    if not todo:
        return
    total = sum(len(chunk.items) for chunk in todo)
    with tqdm(total=total, desc="evaluate", unit="item", mininterval=1.0) as bar:

        def done(chunk: Chunk, seconds: float) -> None:
            tasks[chunk.task].seconds += seconds
            bar.set_postfix_str(f"{chunk.task} {chunk.look}".strip(), refresh=False)
            bar.update(len(chunk.items))

        if workers.ray is not None and workers.resources is not None:
            stages = Stages(
                prepare=partial(_unless_answered, store),
                actor=partial(_Timed, workers.make),
                finish=partial(_write, store),
            )
            map_shards(todo, stages, workers.ray, workers.resources, done)
            return
        worker = _Timed(workers.make)
        for chunk in todo:
            done(chunk, _write(store, chunk, worker.process(chunk)))


class _Timed:
    """A worker that says how long each chunk took."""

    def __init__(self, make: Callable[[], Answering]) -> None:
        self._worker = make()

    def process(self, chunk: Chunk | None) -> tuple[Answers | None, float]:
        started = time.monotonic()
        return self._worker.process(chunk), time.monotonic() - started


def _unless_answered(store: AnswerStore, chunk: Chunk) -> tuple[Chunk, Chunk | None]:
    """The chunk to keep, and the chunk to send; nothing where another run has answered it."""
    return chunk, None if store.is_answered(chunk) else chunk


def _write(store: AnswerStore, chunk: Chunk, answered: tuple[Answers | None, float]) -> float:
    """Publish the answers to a chunk; returns the seconds that they took."""
    answers, seconds = answered
    if answers is not None:
        store.write(chunk, answers)
    return seconds


# --------------------------------------------------------------------------------- scores


def _score(one: Evaluated, results: dict[str, Any]) -> None:
    """Score a task all of whose passes are complete, and write the results so far."""
    if any(p.name not in one.done for p in one.task.passes(one.done)):
        return
    args = one.data.args
    out = Outputs(as_url(args.out) if args.out is not None else None)
    started = time.monotonic()
    scores = one.task.score(one.done, out)
    scores["split"] = one.data.split
    if one.data.benchmark is not None:
        scores["prompts"] = args.scoring.prompts
    scores["notes"] = [*one.notes, *scores["notes"]]
    results[one.task.name] = scores | {"made_with": one.plan}
    results["seconds"][one.task.name] = round(one.seconds + time.monotonic() - started, 1)
    out.write("results.json", results, indent=1)
