"""The run of a job over many images: pieces of work, each with a file of its own when it is done.

    read a piece's images ─ a checkpoint's results ─ write the piece's file

Pieces are a function of the input alone, and batches are made inside a piece. A job that was ended
anywhere goes on with the same command, on any number of workers, and its files are those of an
undisturbed run, byte for byte.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from cluster.ray.map import Stages, map_shards
from cluster.ray.session import RayConfig, describe_cluster, session
from cluster.storage.chunks import Arrays, ChunkStore, OtherPlan, Rows
from jobs.bulk.arguments import WorkArgs
from jobs.prediction.arithmetic import Arithmetic, settled, versions
from modeling.device import pick_device
from modeling.linear import products_by
from modeling.precision import threads_set
from pipeline.sample import Rejected, Sample
from pipeline.sources.base import Source
from pipeline.sources.pictures import Piece

_ROOT = Path(__file__).resolve().parents[2]
Named = tuple[str, Sample | Rejected]
"""The name of an image, and the image or the reason why it cannot be read."""
Made = tuple[dict[str, Any], Rows | Arrays]
"""The results of a piece: fields of its header, and its rows or arrays."""


class Worker(Protocol):
    """A loaded checkpoint that makes the results of a piece."""

    def process(self, records: Sequence[Named]) -> Made: ...


Maker = Callable[[str, Arithmetic], Worker]
"""Device and arithmetic -> a worker; pickled to the processes."""


def run_pieces(
    work: WorkArgs,
    store: ChunkStore,
    plan: Mapping[str, Any],
    source: Source,
    pieces: Sequence[Piece],
    *,
    make: Maker,
) -> int:
    """Make the results of all pieces that have no file, with a progress bar.

    Args:
        plan: what the results depend on, beside images and arithmetic.

    Returns:
        The number of pieces that were there before.

    Raises:
        ValueError: the results that are there were made otherwise.
    """
    if work.replace:
        store.remove()
    begun = (store.plan() or {}).get("arithmetic", {})
    threads, there = work.threads_of(begun), store.names()
    todo = [piece for piece in pieces if piece.name not in there]
    whole = partial(_open_plan, work, store, plan)
    with tqdm(
        total=sum(piece.size for piece in pieces),
        initial=sum(piece.size for piece in pieces if piece.name in there),
        unit="image", mininterval=1.0, smoothing=0.1, dynamic_ncols=True,
    ) as bar:  # fmt: skip

        def done(piece: Piece, _: Any) -> None:
            bar.update(piece.size)

        if not work.uses_ray:
            device = pick_device(work.device)
            here = settled(work.dtype, threads, begun, torch.device(device).type)
            whole(here)
            with threads_set(threads):
                _here(store, source, todo, partial(_Bound, make, device, here), done)
            return len(pieces) - len(todo)
        if not todo:
            return len(pieces)
        kind: Any = work.device if work.device in ("auto", "cpu") else "gpu"
        config = RayConfig(work.cluster, work.workers, threads, device=kind)
        with session(config, _ROOT) as resources:
            bar.write(f"{resources.actors} workers ({resources.device}; {describe_cluster()})")
            device = "cpu" if resources.device == "cpu" else "cuda"
            arithmetic = settled(work.dtype, threads, begun, resources.device)
            whole(arithmetic)
            stages = Stages(
                prepare=partial(_read, store, source.reader()),
                actor=partial(_Bound, make, device, arithmetic),
                finish=partial(_write, store),
            )
            map_shards(todo, stages, config, resources, done)
    return len(pieces) - len(todo)


def _open_plan(
    work: WorkArgs, store: ChunkStore, plan: Mapping[str, Any], arithmetic: Arithmetic
) -> None:
    made = {"arithmetic": arithmetic.described(), "batch_size": work.batch_size}
    try:
        store.open_plan({**plan, **made, "libraries": versions()})
    except OtherPlan as differs:
        raise ValueError(
            f"{store.url}/{store.folder} holds results that were made otherwise ({differs}); give "
            "another --out, or --replace to make them again"
        ) from differs


class _Bound:
    """A worker with its arithmetic."""

    def __init__(self, make: Maker, device: str, arithmetic: Arithmetic) -> None:
        self._products = arithmetic.products
        self._worker = make(device, arithmetic)

    def process(self, records: list[Named] | None) -> Made | None:
        if records is None:
            return None
        with products_by(self._products), torch.inference_mode():
            return self._worker.process(records)


def _here(
    store: ChunkStore,
    source: Source,
    todo: Sequence[Piece],
    make: Callable[[], _Bound],
    done: Callable[[Piece, Any], None],
) -> None:
    worker = make() if todo else None
    for piece in todo:
        assert worker is not None
        _, records = _read(store, source, piece)
        _write(store, piece, worker.process(records))
        done(piece, None)


def _read(store: ChunkStore, source: Source, piece: Piece) -> tuple[Piece, list[Named] | None]:
    """The piece to keep, and its images to send; nothing where another run has done it."""
    return piece, None if store.has(piece.name) else list(piece.records(source))


def _write(store: ChunkStore, piece: Piece, made: Made | None) -> None:
    if made is not None:
        header, content = made
        store.write(piece.name, header, content)
