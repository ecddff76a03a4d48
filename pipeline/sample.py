"""One image-text pair on its way from a source to a shard, and a pair that is rejected."""

import hashlib
from dataclasses import dataclass, field
from typing import Any


def make_uid(source: str, shard: str, key: str) -> str:
    """128-bit BLAKE2b of (source, shard, key) as 32 hex digits.

    The parts are separated by a byte that no name may contain, so ("a", "bc") and ("ab", "c")
    differ. Everything random downstream is keyed by this, never by position or process.
    """
    text = "\0".join((source, shard, key)).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Sample:
    """One input pair as its source delivers it: original bytes, nothing decoded.

    Attributes:
        uid: 32 hex digits (``make_uid``).
        key: name inside the shard, unique there, safe as a tar member's stem.
        source: name of the source.
        shard: name of the input shard.
        image: encoded file exactly as the source holds it.
        caption: web caption, or first human caption.
        captions: all human captions where the source has several (COCO), else ``(caption,)``.
        meta: the source's own fields (img2dataset's json, a JSONL line).
        ext: extension of the image in the output, without the dot.
        human: whether people wrote the captions; such samples get no synthetic ones.
    """

    uid: str
    key: str
    source: str
    shard: str
    image: bytes
    caption: str
    captions: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    ext: str = "jpg"
    human: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """An input that does not become a sample; it gets its row in the parquet nevertheless.

    Attributes:
        uid, key, source, shard, caption: as in ``Sample``.
        reason: word under which it is counted.
        status: ``failed`` (it cannot become a sample) or ``filtered`` (it shall not).
        sha256: hex digest of the image; "" where it was not read.
    """

    uid: str
    key: str
    source: str
    shard: str
    reason: str
    caption: str = ""
    status: str = "failed"
    sha256: str = ""
