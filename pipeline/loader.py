"""Batches for training: the schedule's draws, read with one ``pread`` each, decoded and tokenised.

``pipeline.reading`` has the bytes. What a batch holds is a function of (data, seed, step,
rank) alone: not of workers, of earlier steps, or of where a run was resumed.
"""

import hashlib
import json
import queue
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from cluster.cache import NodeCache, default_folder
from cluster.dist import derive_seed
from pipeline.images import decode
from pipeline.reading import BadSample, Fetcher, Shards
from pipeline.sample import make_uid
from pipeline.schedule import Draw, Schedule, SourceSizes
from pipeline.transforms import TrainTransform, normalise

Tokenise = Callable[[list[str]], dict[str, Tensor]]
MAX_REPLACED_IN_A_ROW = 100
_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "image")
_SIDES = re.compile(r"\b(left|right|leftmost|rightmost)\b", re.IGNORECASE)


@dataclass(frozen=True)
class LoaderConfig:
    """How batches are made.

    Attributes:
        captions: which of a sample's kept captions is taken at a visit: ``random_top2`` one of
            the best two (the paper), ``top1`` the best, ``weighted`` in proportion to the softmax
            of their scores.
        workers: processes that decode; 0 decodes in a thread beside the training step.
        prefetch: batches made ahead.
        weights: an integer a source for the mix, in the order of ``--data``; none mixes by size.
        cache: folder of the node's copies of remote shards; "" takes ``$ISTHMUS_CACHE`` or the
            user's cache folder. ``cache_gb`` is how much it may hold.
        fetch_ahead: steps before a remote shard is needed at which its fetch begins.
    """

    captions: Literal["random_top2", "top1", "weighted"] = "random_top2"
    workers: int = 0
    prefetch: int = 4
    weights: tuple[int, ...] = ()
    cache: str = ""
    cache_gb: float = 200.0
    fetch_ahead: int = 50

    def node_cache(self) -> NodeCache:
        """The cache that these fields name."""
        folder = Path(self.cache) if self.cache else default_folder()
        return NodeCache(folder, self.cache_gb)


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's (micro-)batch of B samples.

    Attributes:
        images_B3HW: uint8; an encoder takes ``pixels_B3HW``.
        texts: one caption each.
        uids: 32 hex digits each.
        image_ids_B: int64, from the image's bytes: equal for samples that show the same image.
        questions: what each text answers, where the data is questions (``pipeline.questions``).
        draws_B2: float64 in [0, 1), of (seed, uid, visit): what an objective draws a sample,
            whatever the ranks and the batch that it is in.
        tokens: what ``tokenise`` made of the texts, empty without it.
        replaced: uid (or place) and reason of each unreadable sample that another one stands in
            for.
    """

    images_B3HW: Tensor
    texts: list[str]
    uids: list[str]
    image_ids_B: Tensor
    questions: list[str]
    draws_B2: Tensor
    tokens: dict[str, Tensor]
    replaced: list[str]

    def pixels_B3HW(self, device: torch.device | str = "cpu") -> Tensor:
        """The images as an encoder takes them: on a device, float32, normalised there."""
        return normalise(self.images_B3HW.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, for copies that overlap; called by the DataLoader."""
        tokens = {name: tensor.pin_memory() for name, tensor in self.tokens.items()}
        return replace(
            self,
            images_B3HW=self.images_B3HW.pin_memory(),
            image_ids_B=self.image_ids_B.pin_memory(),
            draws_B2=self.draws_B2.pin_memory(),
            tokens=tokens,
        )


class Item(NamedTuple):
    """A sample ready for its batch; ``replaced`` as in ``Batch``."""

    image: Tensor
    text: str
    uid: str
    image_id: int
    question: str
    draws: tuple[float, float]
    replaced: tuple[str, ...] = ()


def make_schedule(
    sources: Sequence[Shards], config: LoaderConfig, seed: int, global_batch: int
) -> Schedule:
    """The schedule over opened sources.

    Raises:
        ValueError: not as many weights as sources.
    """
    if config.weights and len(config.weights) != len(sources):
        raise ValueError(
            f"loader.weights = {config.weights}: {len(sources)} sources are given; "
            "give one positive integer each, or none"
        )
    weights = config.weights or (0,) * len(sources)
    pairs = zip(sources, weights, strict=True)
    return Schedule([SourceSizes(s.name, s.sizes, w) for s, w in pairs], seed, global_batch)


class Samples(Dataset):
    """Map-style: a ``Draw`` in, a decoded sample out, whatever happens to the sample itself."""

    def __init__(
        self,
        sources: Sequence[Shards],
        schedule: Schedule,
        transform: TrainTransform,
        captions: str = "random_top2",
    ) -> None:
        self.sources, self.schedule, self.transform = sources, schedule, transform
        self.captions = captions

    def __getitem__(self, draw: Draw) -> Item:
        """The sample of a draw, and why others before it in its place were not used.

        Raises:
            ValueError: a hundred samples in a row are unreadable.
        """
        replaced: list[str] = []
        for attempt in range(MAX_REPLACED_IN_A_ROW):
            this = self.schedule.replacement(draw, attempt) if attempt else draw
            try:
                return self._sample(this)._replace(replaced=tuple(replaced))
            except ValueError as bad:
                source = self.sources[this.source]
                where = f"{source.tars[this.shard]}#{this.index}"
                replaced.append(f"{source.name}/{where}: {bad}")
        raise ValueError(
            f"{MAX_REPLACED_IN_A_ROW} unreadable samples in a row, the last: {replaced[-1]}; "
            "check the data"
        )

    def _sample(self, draw: Draw) -> Item:
        source = self.sources[draw.source]
        members = source.members(draw.shard, draw.index)
        record = _record(members)
        uid = record.get("uid")
        if not isinstance(uid, str):
            uid = make_uid(*source.place(draw.shard), source.key(draw.shard, draw.index))
        text = choose_caption(
            record,
            members,
            policy=self.captions,
            seed=self.schedule.seed,
            uid=uid,
            visit=draw.visit,
        )
        image = next((members[ext] for ext in members if ext in _IMAGES), None)
        if image is None:
            raise BadSample(f"no image among its members {sorted(members)}")
        generator = torch.Generator().manual_seed(
            derive_seed("augment", self.schedule.seed, uid, draw.visit)
        )
        question = str(record.get("question", ""))
        pixels = self._transformed(decode(image), generator, f"{question} {text}")
        place = (self.schedule.seed, uid, draw.visit)
        draws = (_uniform("first draw", *place), _uniform("second draw", *place))
        return Item(pixels, text, uid, _image_id(record, image), question, draws)

    def _transformed(self, image: Tensor, generator: torch.Generator, text: str) -> Tensor:
        allowed = not (self.transform.config.keep_sides and names_side(text))
        return self.transform(image, generator, allowed)


def names_side(text: str) -> bool:
    """Whether a text speaks of left or right, which a flip would turn into a lie."""
    return _SIDES.search(text) is not None


def choose_caption(
    record: dict[str, Any],
    members: dict[str, bytes],
    *,
    policy: str,
    seed: int,
    uid: str,
    visit: int,
) -> str:
    """The caption of one visit: a function of (seed, uid, visit) among the kept ones.

    Raises:
        BadSample: no caption, or none that is text.
    """
    kept = _kept(record, members)
    uniform = _uniform("caption", seed, uid, visit)
    if policy == "top1":
        chosen = kept[0][0]
    elif policy == "weighted":
        scores = np.array([score for _, score in kept], dtype=np.float64)
        shares = np.exp(scores - scores.max())
        place = np.searchsorted(np.cumsum(shares / shares.sum()), uniform, side="right")
        chosen = kept[min(int(place), len(kept) - 1)][0]
    else:  # human captions are all kept, and all of them drawn among
        human = all(origin == "human" for origin in _origins(record))
        among = kept if human else kept[:2]
        chosen = among[int(uniform * len(among))][0]
    text = " ".join(chosen.split())
    if not text:
        raise BadSample("its caption is empty")
    return text


def _uniform(*parts: object) -> float:
    """A number in [0, 1) of any printable parts: 53 bits, so that it cannot round to 1."""
    return (derive_seed(*parts) >> 10) / 2**53


def _kept(record: dict[str, Any], members: dict[str, bytes]) -> list[tuple[str, float]]:
    """(text, score) of the kept captions, best first; of a foreign sample, its only one."""
    candidates, kept = record.get("captions"), record.get("kept")
    if isinstance(candidates, list) and isinstance(kept, list) and kept:
        return [(candidates[i]["text"], float(candidates[i]["score"] or 0.0)) for i in kept]
    text = members.get("txt")
    if text is not None:
        try:
            return [(text.decode("utf-8"), 0.0)]
        except UnicodeDecodeError as broken:
            raise BadSample("its caption is not UTF-8") from broken
    if isinstance(record.get("caption"), str):
        return [(record["caption"], 0.0)]
    raise BadSample("it has no caption")


def _origins(record: dict[str, Any]) -> list[str]:
    captions = record.get("captions")
    if not isinstance(captions, list) or not record.get("kept"):
        return [""]
    return [captions[i].get("origin", "") for i in record["kept"]]


def _record(members: dict[str, bytes]) -> dict[str, Any]:
    try:
        record = json.loads(members.get("json", b"{}"))
    except (json.JSONDecodeError, UnicodeDecodeError) as broken:
        raise BadSample("its json cannot be read") from broken
    return record if isinstance(record, dict) else {}


def _image_id(record: dict[str, Any], image: bytes) -> int:
    """63 bits of the bytes' sha256: samples with several captions of an image share it."""
    known = record.get("sha256")  # CapFilt has hashed them already
    digest = known if isinstance(known, str) and len(known) == 64 else ""
    return int((digest or hashlib.sha256(image).hexdigest())[:16], 16) >> 1


def collate(items: list[Item], tokenise: Tokenise | None) -> Batch:
    """Samples to one batch."""
    texts = [item.text for item in items]
    return Batch(
        images_B3HW=default_collate([item.image for item in items]),  # into shared memory
        texts=texts,
        uids=[item.uid for item in items],
        image_ids_B=torch.tensor([item.image_id for item in items]),
        questions=[item.question for item in items],
        draws_B2=torch.tensor([item.draws for item in items], dtype=torch.float64),
        tokens=tokenise(texts) if tokenise else {},
        replaced=[line for item in items for line in item.replaced],
    )


class Batches:
    """This rank's batches from a step on: accumulation times a step, in order, made ahead.

    Iterate it once; ``close`` (or leaving a ``with`` block) ends its thread and processes.
    """

    def __init__(
        self,
        samples: Samples,
        config: LoaderConfig,
        steps: range,
        *,
        rank: int = 0,
        world: int = 1,
        accumulation: int = 1,
        tokenise: Tokenise | None = None,
    ) -> None:
        order = _RankOrder(samples.schedule, steps, rank, world, accumulation)
        order.check()
        self._loader: DataLoader = DataLoader(
            samples,
            batch_sampler=order,
            collate_fn=partial(collate, tokenise=tokenise),
            num_workers=config.workers,
            worker_init_fn=_leave_signals_to_the_rank,
            prefetch_factor=config.prefetch if config.workers else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # it would draw from the global one otherwise
        )
        self._ahead = _Ahead(iter(self._loader), config.prefetch)
        self._fetcher = Fetcher(samples.sources, order.shards(), config.fetch_ahead * accumulation)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self._ahead.next()
        self._fetcher.step()
        return batch

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop making batches."""
        self._fetcher.close()
        self._ahead.close()


def _leave_signals_to_the_rank(worker: int) -> None:
    """A stop is sent to all processes of a run; the rank still needs its workers to end its step
    and save. They end with it.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class _RankOrder:
    """Batch sampler: the draws of each micro-batch of one rank, step by step."""

    def __init__(
        self, schedule: Schedule, steps: range, rank: int, world: int, accumulation: int
    ) -> None:
        self.schedule, self.steps = schedule, steps
        self.rank, self.world, self.accumulation = rank, world, accumulation

    def check(self) -> None:
        """Raise ValueError where the global batch cannot be cut as asked."""
        share = len(self.schedule.rank_slice(0, self.rank, self.world))
        if share % self.accumulation:
            raise ValueError(
                f"{share} samples a rank cannot be cut into {self.accumulation} equal micro-batches"
            )

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def shards(self) -> Iterator[set[tuple[int, int]]]:
        """The (source, shard) pairs that each micro-batch needs."""
        for draws in self:
            yield {(draw.source, draw.shard) for draw in draws}

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in self.steps:
            draws = self.schedule.rank_slice(step, self.rank, self.world)
            micro = len(draws) // self.accumulation
            for start in range(0, len(draws), micro):
                yield list(draws[start : start + micro])


class _Ahead:
    """Runs an iterator in a thread, a few items ahead, and hands its errors on."""

    def __init__(self, source: Iterator[Any], depth: int) -> None:
        self._ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(max(1, depth))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source,), daemon=True)
        self._thread.start()

    def next(self) -> Any:
        item, error = self._ready.get()
        if error is not None:
            raise error
        return item

    def close(self) -> None:
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def _run(self, source: Iterator[Any]) -> None:
        error: BaseException = StopIteration()
        try:
            for item in source:
                if self._closed.is_set():
                    return
                self._ready.put((item, None))
        except Exception as raised:  # raised again where the batch is asked for
            error = raised
        self._ready.put((None, error))
