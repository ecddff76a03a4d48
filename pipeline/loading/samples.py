"""Samples for training: read, their captions chosen, their images decoded and augmented.

A sample is a function of the data and (seed, uid, visit) alone, not of its batch or process.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cluster.ranks.dist import derive_seed
from pipeline.captions import member_captions
from pipeline.filenames import IMAGE_SUFFIXES
from pipeline.loading.schedule import SampleRef, Schedule
from pipeline.sample import make_uid
from pipeline.shards.reading import BadSample, Shards
from pipeline.sources.conversations import HUMAN, IMAGE, MODEL, checked_turns
from pipeline.text import TextError, check_caption, has_lone_surrogate, load_json
from pipeline.text_processors import SampleText, caption_text, question_text
from pipeline.transforms import TrainTransform

MAX_REPLACED_IN_A_ROW = 100
_IMAGES = (*IMAGE_SUFFIXES, "image")
_SAID = {
    "no_caption": "it has no caption",
    "caption_not_text": "its caption is no text",
    "caption_not_utf8": "its caption is not UTF-8",
}
_SIDES = re.compile(r"\b(left|right|leftmost|rightmost)\b", re.IGNORECASE)


class EncodedSample(NamedTuple):
    """One visit of a sample, its image still encoded.

    Attributes:
        image: encoded file; empty for a conversation without an image, whose square is black.
        text: caption of this visit, or answer of its question; or a conversation as JSON.
        uid: 32 hex digits.
        image_id: 63 bits of the image's sha256.
        question: question or instruction that the text answers; "" without one.
        augment: seed of its crop and flip.
        draws, replaced: see ``pipeline.loading.batch.Batch``.
    """

    image: bytes
    text: str
    uid: str
    image_id: int
    question: str
    augment: int
    draws: tuple[float, float]
    replaced: tuple[str, ...] = ()


class Samples:
    """The decoded samples behind the references of a schedule.

    An unreadable sample is replaced by the next of its block, and the replacement is told of.

    Args:
        captions: which kept caption is taken (``pipeline.loading.loader.LoaderConfig.captions``).
        text: normalisation of captions and questions, or ``conversation``.
    """

    def __init__(
        self,
        sources: Sequence[Shards],
        schedule: Schedule,
        transform: TrainTransform,
        captions: str = "random_top2",
        text: SampleText = "plain",
    ) -> None:
        self.sources, self.schedule, self.transform = sources, schedule, transform
        self.captions, self.text = captions, text

    def fill(self, refs: Sequence[SampleRef], squares: Tensor) -> list[EncodedSample]:
        """Read samples, and write their augmented images into ``squares`` (uint8 B3SS).

        All are read before the first is decoded: an image of megabytes drives everything else out
        of the processor's caches, and what is read after one takes twice as long.

        Raises:
            ValueError: a hundred samples in a row are unreadable.
        """
        read = [self._try_read(ref) for ref in refs]
        together = zip(refs, read, squares, strict=True)
        return [self._fill_square(ref, sample, square) for ref, sample, square in together]

    def _try_read(self, ref: SampleRef) -> EncodedSample | None:
        try:
            return self._read(ref)
        except ValueError:  # met again, and told, where its square is filled
            return None

    def _fill_square(
        self, ref: SampleRef, first: EncodedSample | None, square: Tensor
    ) -> EncodedSample:
        """The sample behind a reference, or the first readable one after it."""
        replaced: list[str] = []
        for attempt in range(MAX_REPLACED_IN_A_ROW):
            this = self.schedule.replacement(ref, attempt) if attempt else ref
            try:
                sample = self._read(this) if attempt or first is None else first
                self._draw(sample, square)
                return sample._replace(replaced=tuple(replaced)) if replaced else sample
            except ValueError as bad:
                source = self.sources[this.source]
                where = f"{source.tars[this.shard]}#{this.index}"
                replaced.append(f"{source.name}/{where}: {bad}")
        raise ValueError(
            f"{MAX_REPLACED_IN_A_ROW} unreadable samples in a row, the last: {replaced[-1]}; "
            "check the data"
        )

    def _read(self, ref: SampleRef) -> EncodedSample:
        source = self.sources[ref.source]
        members = source.members(ref.shard, ref.index)
        record = _record(members)
        uid = record.get("uid")
        if not isinstance(uid, str):
            uid = make_uid(*source.uid_parts(ref.shard), source.key(ref.shard, ref.index))
        key = (self.schedule.seed, uid, ref.visit)
        told, asked = record.get("conversations"), ""
        image = next((members[ext] for ext in members if ext in _IMAGES), None)
        if self.text == "conversation" and isinstance(told, list):
            checked_turns(told, pictured=image is not None)
            text, image = json.dumps(told, ensure_ascii=False), image or b""
        else:
            text, asked = self._texts(source, record, members, key)
        if image is None:
            raise BadSample(f"no image among its members {sorted(members)}")
        return EncodedSample(
            image,
            text,
            uid,
            image_id=_image_id(record, image),
            question=asked,
            augment=derive_seed("augment", *key),
            draws=(uniform("first draw", *key), uniform("second draw", *key)),
        )

    def _texts(
        self,
        source: Shards,
        record: dict[str, Any],
        members: dict[str, bytes],
        key: tuple[int, str, int],
    ) -> tuple[str, str]:
        """The text to learn of a visit, and the question or instruction in front of it."""
        seed, uid, visit = key

        def chosen() -> str:
            return choose_caption(
                record, members, policy=self.captions, seed=seed, uid=uid, visit=visit
            )

        if source.phrase is not None:
            asked, text = source.phrase(record, chosen, lambda name: uniform(name, *key))
            if has_lone_surrogate(asked + text):
                raise BadSample("its instruction or answer is not UTF-8")
            return text, asked
        text, asked = chosen(), _question(record)
        if self.text == "conversation":
            if IMAGE in asked + text:
                raise BadSample(f"its text holds {IMAGE}, which stands for an image")
            return as_conversation(asked, text), ""
        if not asked:  # what answers a question stays as people wrote it, as in the reference
            text = caption_text(text, self.text)
        if not text:
            raise BadSample("its caption holds no words")
        return text, question_text(asked, self.text)

    def _draw(self, sample: EncodedSample, square: Tensor) -> None:
        """Write a sample's image into its square."""
        if sample.image:
            square.copy_(self._augmented(sample))
        else:
            square.zero_()

    def _augmented(self, sample: EncodedSample) -> Tensor:
        keeps_sides = self.transform.config.keep_sides
        allowed = not (keeps_sides and names_side(f"{sample.question} {sample.text}"))
        generator = torch.Generator().manual_seed(sample.augment)
        return self.transform.of_file(sample.image, generator, allowed)


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
    share = uniform("caption", seed, uid, visit)
    if policy == "top1":
        chosen = kept[0][0]
    elif policy == "weighted":
        scores = np.array([score for _, score, _ in kept], dtype=np.float64)
        shares = np.exp(scores - scores.max())
        index = np.searchsorted(np.cumsum(shares / shares.sum()), share, side="right")
        chosen = kept[min(int(index), len(kept) - 1)][0]
    else:  # human captions are all kept, and all of them drawn among
        human = all(origin == "human" for _, _, origin in kept)
        among = kept if human else kept[:2]
        chosen = among[int(share * len(among))][0]
    chosen, reason = check_caption(chosen)
    if reason:
        raise BadSample(_SAID[reason])
    text = " ".join(chosen.split())
    if not text:
        raise BadSample("its caption is empty")
    return text


def as_conversation(question: str, answer: str) -> str:
    """A caption, or a question with its answer, as a conversation about an image, in JSON."""
    asked = f"{IMAGE}\n{question}" if question else IMAGE
    turns = [{"from": HUMAN, "value": asked}, {"from": MODEL, "value": answer}]
    return json.dumps(turns, ensure_ascii=False)


def uniform(*parts: object) -> float:
    """A number in [0, 1) of any printable parts: 53 bits, so that it cannot round to 1."""
    return (derive_seed(*parts) >> 10) / 2**53


def _kept(record: dict[str, Any], members: dict[str, bytes]) -> list[tuple[Any, float, str]]:
    """(text, score, origin) of the kept captions, best first; all that a foreign sample has.

    Nothing has ranked the captions of a foreign sample: like those of people, all are kept.
    """
    candidates, kept = record.get("captions"), record.get("kept")
    if isinstance(candidates, list) and isinstance(kept, list) and kept:
        try:
            chosen = [candidates[i] for i in kept]
            return [(c["text"], float(c["score"] or 0.0), c.get("origin", "")) for c in chosen]
        except (AttributeError, LookupError, TypeError, OverflowError) as broken:
            raise BadSample("its record's captions cannot be read") from broken
    captions, reason = member_captions(members, record)
    if reason:
        raise BadSample(_SAID[reason])
    return [(caption, 0.0, "human") for caption in captions]


def _record(members: dict[str, bytes]) -> dict[str, Any]:
    try:
        record = load_json(members.get("json", b"{}"))
    except TextError as broken:
        raise BadSample("its json cannot be read") from broken
    return record if isinstance(record, dict) else {}


def _question(record: dict[str, Any]) -> str:
    question = record.get("question")
    if not isinstance(question, str):
        return ""
    if has_lone_surrogate(question):
        raise BadSample("its question is not UTF-8")
    return question


def _image_id(record: dict[str, Any], image: bytes) -> int:
    """63 bits of the bytes' sha256: samples with several captions of an image share it."""
    known = record.get("sha256")  # CapFilt has hashed them already
    digest = known if isinstance(known, str) and len(known) == 64 else ""
    return int((digest or hashlib.sha256(image).hexdigest())[:16], 16) >> 1
