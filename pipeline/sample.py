"""The record: one image-text pair on its way through the data stage."""

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
        uid: 32 hex digits, see ``make_uid``.
        key: name inside the shard, unique there, safe as a tar member's stem.
        image: the encoded file exactly as the source holds it.
        caption: the web caption, or the first human caption.
        captions: all human captions where the source has several (COCO), else ``(caption,)``.
        meta: the source's own fields (img2dataset's json, a JSONL line), never audit truth.
        ext: the image's file extension in the source, without the dot.
        human: the captions were written by people: they pass through without synthetic ones.
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
    """An input that does not become a sample, with its counted reason; it still gets its row.

    ``status`` is ``failed`` (it cannot), or ``filtered`` (it shall not).
    """

    uid: str
    key: str
    source: str
    shard: str
    reason: str
    caption: str = ""
    status: str = "failed"
    sha256: str = ""
