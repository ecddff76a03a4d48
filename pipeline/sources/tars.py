"""Tars as img2dataset leaves them, perhaps with a parquet beside each; or plain webdataset ones."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from cluster.storage.base import Entry, Storage
from pipeline.captions import member_captions
from pipeline.filenames import (
    IMAGE_SUFFIXES,
    is_hidden,
    is_image,
    is_unsafe,
    member_suffix,
)
from pipeline.sample import Rejected, Sample, make_uid
from pipeline.shards.tar import (
    Member,
    TarError,
    find_scattered,
    group_members,
    split_name,
    walk_tar,
)
from pipeline.sources.base import InputShard, Source
from pipeline.sources.columns import Columns, read_columns
from pipeline.text import TextError, load_json

_PROBE = 1 << 16  # bytes of a tar's two ends that go into its etag


@dataclass(frozen=True, slots=True)
class TarSource:
    """img2dataset's output (tars, perhaps a parquet beside each) or plain webdataset tars.

    Attributes:
        name: name in records and uids.
        storage: folder of the tars.
        tars: the tars.
        human: whether people wrote the captions.
        captioned: whether a sample needs a caption and readable fields; False: an image will do.
    """

    name: str
    storage: Storage
    tars: tuple[Entry, ...]
    human: bool = False
    captioned: bool = True

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
        columns = read_columns(self.storage, str(Path(shard.name).with_suffix(".parquet")))
        reader = _TarReader(
            self.name, shard.name, columns, human=self.human, captioned=self.captioned
        )
        with self.storage.local_copy(shard.name) as path, open(path, "rb") as file:
            yield from reader.read(file, os.fstat(file.fileno()).st_size)


def _ends(storage: Storage, tar: Entry) -> str:
    digest = hashlib.sha256(storage.read_range(tar.name, 0, _PROBE))
    digest.update(storage.read_range(tar.name, max(_PROBE, tar.size - _PROBE), _PROBE))
    return digest.hexdigest()[:32]


class _TarReader:
    def __init__(
        self, source: str, shard: str, columns: Columns, *, human: bool, captioned: bool
    ) -> None:
        self.source, self.shard, self.human, self.captioned = source, shard, human, captioned
        self.columns = columns
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
        groups = group_members(whole)
        if not groups and not damage:
            damage = TarError("empty_tar", "no members but hidden ones")
        scattered = find_scattered(groups) is not None
        for key, group in groups:
            # The damage may have taken members of the sample before it, such as the json with
            # its NSFW column: with fewer members than the first sample it is not whole. Where
            # samples are not in one piece, it may be any of them.
            near = scattered or group is groups[-1][1]
            cut = damage is not None and near and len(group) < len(groups[0][1])
            yield from self._samples(file, key, group, damage if cut else None)
        for member in odd:
            folder = member.name.endswith("/") or self._is_folder(member, whole)
            if not folder and not is_hidden(member.name):
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

    def _samples(
        self, file: BinaryIO, key: str, group: list[Member], damage: TarError | None
    ) -> Iterator[Sample | Rejected]:
        """The sample of a key, and a row for each further image of that key."""
        if is_unsafe(key):
            yield self._rejected(key, "unsafe_name")
        elif key in self.seen:
            yield self._rejected(key, "duplicate_key")
        elif damage:
            yield self._rejected(key, damage.reason)
        else:
            names = {split_name(member.name)[1]: member for member in group}
            images = [ext for ext in names if ext in IMAGE_SUFFIXES]
            dotted = [names[ext].name for ext in names if "." in ext and is_image(ext)]
            if images:
                yield self._sample(file, key, names, images[0])
            elif dotted:  # IMG.1.jpg, IMG.2.jpg: to webdataset all are parts of a sample IMG
                yield from (self._rejected(name, "dot_in_name") for name in dotted)
            else:
                yield self._rejected(key, "no_image")
            yield from (self._rejected(f"{key}.{ext}", "second_image") for ext in images[1:])
        self.seen.add(key)

    def _sample(
        self, file: BinaryIO, key: str, members: dict[str, Member], image: str
    ) -> Sample | Rejected:
        data = {}
        for ext, member in members.items():
            file.seek(member.data)
            data[ext] = file.read(member.size)
        meta, reason = self._meta(key, data)
        captions, text_reason = member_captions(data, meta)
        reason = reason or text_reason
        if reason and self.captioned:
            return self._rejected(key, reason, captions[0] if captions else "")
        uid = make_uid(self.source, self.shard, key)
        return Sample(
            uid,
            key,
            self.source,
            self.shard,
            data[image],
            captions[0] if captions else "",
            captions,
            meta,
            member_suffix(image),
            self.human,
        )

    def _meta(self, key: str, data: dict[str, bytes]) -> tuple[dict[str, Any], str]:
        """What json and parquet say of a sample, and "" or why that is not enough."""
        told: dict[str, Any] = {}
        if "json" in data:
            try:
                found = load_json(data["json"])
            except TextError:
                return self.columns.find(key) or {}, "bad_json"
            told = found if isinstance(found, dict) else {}
        elif not self.columns.readable:
            return told, "unreadable_parquet"
        return self.columns.join(key, told)
