"""Tars as img2dataset leaves them, perhaps with a parquet beside each; or plain webdataset ones."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Entry, Storage
from pipeline.sample import Rejected, Sample, make_uid
from pipeline.shards import Member, TarError, group_members, split_name, walk_tar
from pipeline.source_base import (
    IMAGE_SUFFIXES,
    TEXT_EXTS,
    InputShard,
    Source,
    field_captions,
    is_unsafe,
    member_suffix,
)

_PROBE = 1 << 16  # bytes of a tar's two ends that go into its etag


@dataclass(frozen=True, slots=True)
class TarSource:
    """img2dataset's output (tars, perhaps a parquet beside each) or plain webdataset tars."""

    name: str
    storage: Storage
    tars: tuple[Entry, ...]
    human: bool = False

    def shards(self) -> list[InputShard]:
        """One shard per tar; the etag is the store's, or of its size and its two ends."""
        return [
            InputShard(tar.name, tar.size, tar.etag or _ends(self.storage, tar))
            for tar in self.tars
        ]

    def reader(self) -> Source:
        """The same without the list, to send around: each shard names its tar."""
        return replace(self, tars=())

    def read(self, shard: InputShard) -> Iterator[Sample | Rejected]:
        """Every sample of the tar; damage becomes one more row behind the whole samples."""
        columns = _columns(self.storage, str(Path(shard.name).with_suffix(".parquet")))
        reader = _TarReader(self.name, shard.name, *columns, human=self.human)
        with self.storage.local_copy(shard.name) as path, open(path, "rb") as file:
            yield from reader.read(file, os.fstat(file.fileno()).st_size)


def _ends(storage: Storage, tar: Entry) -> str:
    digest = hashlib.sha256(storage.read_range(tar.name, 0, _PROBE))
    digest.update(storage.read_range(tar.name, max(_PROBE, tar.size - _PROBE), _PROBE))
    return digest.hexdigest()[:32]


def _columns(storage: Storage, parquet: str) -> tuple[dict[str, dict[str, Any]], bool]:
    """img2dataset's columns by key, and whether they could be read."""
    if not storage.exists(parquet):
        return {}, True
    try:
        rows = pq.read_table(pa.BufferReader(storage.read(parquet))).to_pylist()
    except (pa.ArrowException, OSError):
        return {}, False
    return {str(row["key"]): row for row in rows if row.get("key") is not None}, True


class _TarReader:
    def __init__(
        self,
        source: str,
        shard: str,
        columns: dict[str, dict[str, Any]],
        columns_ok: bool,
        *,
        human: bool,
    ) -> None:
        self.source, self.shard, self.human = source, shard, human
        self.columns, self.columns_ok = columns, columns_ok
        self.seen: set[str] = set()

    def read(self, file: BinaryIO, size: int) -> Iterator[Sample | Rejected]:
        """Every sample of an open tar; what is damaged or no sample becomes a row of its own."""
        whole: list[Member] = []
        odd: list[Member] = []
        damage: TarError | None = None
        try:
            for member in walk_tar(file, size, ended=True):
                (whole if member.regular else odd).append(member)
        except TarError as broken:
            damage = broken
        if not whole and not damage:
            damage = TarError("empty_tar", "no members")
        groups = list(group_members(whole))
        for key, group in groups:
            # The damage may have taken members of the sample before it, such as the json with
            # its NSFW column: with fewer members than the first sample it is not whole.
            cut = damage is not None and group is groups[-1][1] and len(group) < len(groups[0][1])
            yield self._sample(file, key, group, damage if cut else None)
        for member in odd:
            if not member.name.endswith("/") and not self._is_folder(member, whole):
                yield self._rejected(member.name, "not_a_regular_file")
        if damage:
            yield self._rejected(self.shard, damage.reason)

    @staticmethod
    def _is_folder(member: Member, whole: Sequence[Member]) -> bool:
        return any(other.name.startswith(member.name + "/") for other in whole)

    def _rejected(self, key: str, reason: str, caption: str = "") -> Rejected:
        key = key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        uid = make_uid(self.source, self.shard, key)
        return Rejected(uid, key, self.source, self.shard, reason, caption)

    def _sample(
        self, file: BinaryIO, key: str, group: list[Member], damage: TarError | None
    ) -> Sample | Rejected:
        if is_unsafe(key):
            return self._rejected(key, "unsafe_name")
        if key in self.seen:
            return self._rejected(key, "duplicate_key")
        self.seen.add(key)
        if damage:
            return self._rejected(key, damage.reason)
        data = {}
        for member in group:
            file.seek(member.data)
            data[split_name(member.name)[1]] = file.read(member.size)
        ext = next((ext for ext in data if ext in IMAGE_SUFFIXES), None)
        if ext is None:
            return self._rejected(key, "no_image")
        meta, reason = self._meta(key, data)
        captions, text_reason = _tar_captions(data, meta)
        reason = reason or text_reason
        if reason:
            return self._rejected(key, reason, captions[0] if captions else "")
        uid = make_uid(self.source, self.shard, key)
        return Sample(
            uid,
            key,
            self.source,
            self.shard,
            data[ext],
            captions[0],
            captions,
            meta,
            member_suffix(ext),
            self.human,
        )

    def _meta(self, key: str, data: dict[str, bytes]) -> tuple[dict[str, Any], str]:
        columns = self.columns.get(key, {})
        if "json" not in data:
            return columns, "" if self.columns_ok else "unreadable_parquet"
        try:
            meta = json.loads(data["json"])
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
            return columns, "bad_json"
        return {**columns, **meta} if isinstance(meta, dict) else columns, ""


def _tar_captions(data: dict[str, bytes], meta: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    text = next((data[ext] for ext in TEXT_EXTS if ext in data), None)
    if text is not None:
        try:
            return (text.decode("utf-8"),), ""
        except UnicodeDecodeError:
            return (text.decode("utf-8", "replace"),), "caption_not_utf8"
    return field_captions(meta)
