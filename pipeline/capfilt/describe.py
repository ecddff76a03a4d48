"""The steps of CapFilt on one shard: prepare, describe, select (BLIP-2 paper, section 3.4).

Pure functions between a source and an output shard. The models come in as callables, so this
file knows none of them; the job decides on which machine each step runs.
``pipeline.capfilt.output`` makes a shard of the result.
"""

import hashlib
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.capfilt.filters import (
    FilterConfig,
    check_header,
    check_sample,
    missing_columns,
    passing_captions,
)
from pipeline.capfilt.squares import Squares
from pipeline.images import ImageError, ImageHeader, decode, read_header
from pipeline.pixels import PixelConfig, fit_square
from pipeline.sample import Rejected, Sample
from pipeline.shards.parquet import SampleRow

CaptionFn = Callable[[Tensor, Sequence[str]], list[list[str]]]
"""(uint8 B3SS, uids) -> captions of each image; an empty uid marks padding."""
ScoreFn = Callable[[Tensor, Sequence[Sequence[str]]], list[list[float]]]
"""(uint8 B3SS, texts of each image) -> their scores."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A caption that competes to be kept.

    Attributes:
        text: the caption.
        score: similarity to the image.
        origin: ``synthetic``, ``web`` or ``human``.
    """

    text: str
    score: float
    origin: str


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The images that a model takes.

    Attributes:
        size: side of the square in pixels.
        crop: whether the centre of the resized image is cut out, instead of the whole image being
            squashed.
        interpolation: filter of the resize.
        resize_to: side (of a crop: short side) after the resize; 0 takes ``size``.
    """

    size: int
    crop: bool = False
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_to: int = 0

    def square(self, image: Tensor) -> Tensor:
        """The uint8 square 3SS of a uint8 image 3HW."""
        geometry: Literal["crop", "squash"] = "crop" if self.crop else "squash"
        pixels = PixelConfig((), (), self.interpolation, geometry, self.resize_to, "torch")
        return fit_square(image, self.size, pixels)


@dataclass(frozen=True)
class Kept:
    """The part of a prepared shard that the models do not need.

    Pickled, it hands its images' bytes over as buffers, where the reader takes such: Ray then
    writes them into its store without a copy in this process.

    Attributes:
        samples: samples with their headers and the sha256 of their images, in key order.
        rows: rows of the dropped inputs.
        seconds: time of the preparation.
        unlooked: number of inputs that lack a column that a filter reads, by column.
    """

    samples: list[tuple[Sample, ImageHeader, str]]
    rows: list[SampleRow]
    seconds: float
    unlooked: dict[str, int] = field(default_factory=dict)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if protocol < 5:
            return super().__reduce_ex__(protocol)
        images = [pickle.PickleBuffer(sample.image) for sample, _, _ in self.samples]
        bare = [(replace(sample, image=b""), *rest) for sample, *rest in self.samples]
        return _with_images, (bare, images, self.rows, self.seconds, self.unlooked)


def _with_images(bare: list[tuple[Any, ...]], images: Sequence[Any], *rest: Any) -> Kept:
    """A ``Kept`` that was pickled, with its images' bytes in their places again."""
    pairs = zip(bare, images, strict=True)
    return Kept([(replace(s, image=bytes(image)), *more) for (s, *more), image in pairs], *rest)


@dataclass(frozen=True)
class ModelInput:
    """The part of a prepared shard that is sent to the models; N samples in key order.

    Attributes:
        uids: their uids.
        texts: captions that the source has for each.
        human: whether people wrote them.
        for_captioner, for_scorer: uint8 images N3SS at each model's size S.
    """

    uids: list[str]
    texts: list[tuple[str, ...]]
    human: list[bool]
    for_captioner: np.ndarray
    for_scorer: np.ndarray


@dataclass(frozen=True)
class Described:
    """The models' results on a shard.

    Attributes:
        candidates: for each sample its captions with scores, in the order of generation, those of
            the source last.
        seconds: time of each step.
        short: images at once where the device had no memory for a whole batch, by model.
    """

    candidates: list[list[Candidate]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    short: dict[str, int] = field(default_factory=dict)


def prepare(
    records: Iterable[Sample | Rejected],
    filters: FilterConfig,
    captioner: ImageSpec,
    scorer: ImageSpec,
) -> tuple[Kept, ModelInput]:
    """Filter, decode and resize a shard; samples in key order, everything else as rows.

    The peak of memory is the result itself and one image (in ``tests/pipeline/capfilt``).
    """
    start = time.perf_counter()
    rows: list[SampleRow] = []
    kept: list[tuple[Sample, ImageHeader, str]] = []
    squares = {spec: Squares(spec.size) for spec in (captioner, scorer)}
    unlooked = Counter[str]()
    for record in records:
        if isinstance(record, Sample):
            unlooked.update(missing_columns(filters, record))
        outcome = _admit(record, filters)
        if isinstance(outcome, SampleRow):
            rows.append(outcome)
            continue
        sample, header, sha256, image = outcome
        kept.append((sample, header, sha256))
        for spec, own in squares.items():
            own.add(spec.square(image))
    order = sorted(range(len(kept)), key=lambda place: kept[place][0].key)
    kept = [kept[place] for place in order]
    taken = {spec: own.take(order) for spec, own in squares.items()}
    samples = [sample for sample, _, _ in kept]
    model_input = ModelInput(
        uids=[sample.uid for sample in samples],
        texts=[sample.captions for sample in samples],
        human=[sample.human for sample in samples],
        for_captioner=taken[captioner],
        for_scorer=taken[scorer],
    )
    return Kept(kept, rows, time.perf_counter() - start, dict(unlooked)), model_input


def _admit(
    record: Sample | Rejected, filters: FilterConfig
) -> SampleRow | tuple[Sample, ImageHeader, str, Tensor]:
    """The row of a dropped input; or the sample, its header, its sha256 and its uint8 image 3HW."""
    row = SampleRow(record.uid, record.key, record.source, "failed", web_caption=record.caption)
    if isinstance(record, Rejected):
        return replace(row, status=record.status, reason=record.reason, sha256=record.sha256)
    row = replace(row, sha256=hashlib.sha256(record.image).hexdigest())
    reason = check_sample(filters, record)
    if reason:
        return replace(row, status="filtered", reason=reason)
    captions = passing_captions(filters, record)
    if captions != record.captions:
        record = replace(record, caption=captions[0], captions=captions)
    try:
        header = read_header(record.image, filters.max_pixels)
        row = replace(row, width=header.width, height=header.height)
        reason = check_header(filters, header)
        if reason:
            return replace(row, status="filtered", reason=reason)
        image = decode(record.image, filters.max_pixels)
    except ImageError as broken:
        return replace(row, reason=broken.reason)
    return record, header, row.sha256, image


def describe(
    model_input: ModelInput, caption: CaptionFn, score: ScoreFn, batch_size: int
) -> Described:
    """Captions and scores of a prepared shard.

    Batches are consecutive samples, the last one padded: the models always see the same shapes
    with the same content, whoever runs the shard, so equal inputs give equal bits.
    """
    candidates: list[list[Candidate]] = []
    seconds = {"caption": 0.0, "score": 0.0}
    for first in range(0, len(model_input.uids), batch_size):
        part = slice(first, first + batch_size)
        uids, texts = model_input.uids[part], model_input.texts[part]
        human = model_input.human[part]
        start = time.perf_counter()
        synthetic: list[list[str]] = [[] for _ in uids]
        if not all(human):
            images = _batch(model_input.for_captioner[part], batch_size)
            keys = ["" if mine else uid for uid, mine in zip(uids, human, strict=True)]
            drawn = caption(images, keys + [""] * (batch_size - len(keys)))
            synthetic = [
                [] if mine else captions
                for captions, mine in zip(drawn[: len(uids)], human, strict=True)
            ]
        middle = time.perf_counter()
        rows = [[*made, *own] for made, own in zip(synthetic, texts, strict=True)]
        padding: list[list[str]] = [[] for _ in range(batch_size - len(rows))]
        scores = score(_batch(model_input.for_scorer[part], batch_size), rows + padding)
        scores = scores[: len(rows)]  # without the padding
        for made, row, values, mine in zip(synthetic, rows, scores, human, strict=True):
            origin = "human" if mine else "web"
            origins = ["synthetic"] * len(made) + [origin] * (len(row) - len(made))
            candidates.append(
                [Candidate(t, s, o) for t, s, o in zip(row, values, origins, strict=True)]
            )
        seconds["caption"] += middle - start
        seconds["score"] += time.perf_counter() - middle
    return Described(candidates, seconds)


def _batch(images: np.ndarray, batch_size: int) -> Tensor:
    batch = torch.empty((batch_size, *images.shape[1:]), dtype=torch.uint8)
    batch.numpy()[: len(images)] = images  # what came through Ray is read-only: copied once
    batch[len(images) :] = 0
    return batch


def select(candidates: Sequence[Candidate], keep: int) -> tuple[list[Candidate], list[int]]:
    """Rank candidates by score and choose which to keep.

    Equal scores keep their order (synthetic before web); of equal texts only the best ranked is
    kept; an empty one never. Human captions are all kept: they need no filter.

    Returns:
        All candidates in rank order, and the indices of the kept, best first.

    >>> a, b = Candidate("a dog", 0.3, "synthetic"), Candidate("sale!", 0.1, "web")
    >>> select([b, a, a], keep=2)[1]
    [0, 2]
    """
    ranked = sorted(candidates, key=lambda candidate: -candidate.score)
    kept: list[int] = []
    texts: set[str] = set()
    for index, candidate in enumerate(ranked):
        full = len(kept) >= keep and candidate.origin != "human"
        if full or not candidate.text or candidate.text in texts:
            continue
        kept.append(index)
        texts.add(candidate.text)
    return ranked, kept
