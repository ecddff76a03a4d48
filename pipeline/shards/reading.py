"""Sources of training samples: outputs of CapFilt and folders of tars, on disk or on S3.

Any sample is one ``pread``: the offsets come from the parquet beside a shard, or for tars that
others wrote from walking their headers once. Remote shards are read from the node's cache.
"""

import io
import os
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.ranks.dist import derive_seed
from cluster.storage.base import Entry, Storage
from cluster.storage.cache import Changed, NodeCache
from cluster.storage.local import LocalStorage
from cluster.storage.open import open_storage
from pipeline.filenames import is_hidden
from pipeline.shards.manifest import Commit, committed, manifest_hash
from pipeline.shards.members import span_members
from pipeline.shards.node_manifest import committed_once
from pipeline.shards.record import RECORD_COLUMNS, record_from_list, record_from_table
from pipeline.shards.tar import index_tar

OPEN_SHARDS = 64


class BadSample(ValueError):
    """A sample that cannot be used, with the reason."""


class Files(Protocol):
    """Files that can be had as local paths."""

    def path(self, name: str) -> Path: ...


@dataclass(frozen=True)
class CachedFiles:
    """Remote files through the node's cache, checked against what their records say.

    Attributes:
        storage: store of the files.
        cache: this node's cache.
        checks: size and sha256 by name; -1 and "" where they are not known.
    """

    storage: Storage
    cache: NodeCache
    checks: dict[str, tuple[int, str]]

    def path(self, name: str) -> Path:
        """The local copy, fetched if it is not there; open it now, it may be dropped later."""
        return self.cache.fetch(self.storage, name, *self._check(name))

    def fetch(self, name: str) -> bool:
        """Make the local copy, or return False where another process of the node is making it."""
        return self.cache.fetch_unless_busy(self.storage, name, *self._check(name))

    def _check(self, name: str) -> tuple[int, str]:
        return self.checks.get(name, (-1, ""))


Phrase = Callable[[dict[str, Any], Callable[[], str], Callable[[str], float]], tuple[str, str]]
"""Record, function that draws one of its texts, random numbers -> instruction and answer."""


class Shards:
    """One source of training samples: its shards, their sizes, and any sample's bytes.

    Attributes:
        name: path or URL, for messages and the schedule's fingerprint.
        files: files of the source.
        tars: names of the shards.
        sizes: number of usable samples in each shard.
        digest: hash of the content, made from the commit records or the tars' names and sizes.
        weight: integer share in a mix of sources; 0: the number of samples.
        phrase: how a record becomes an instruction and an answer, for instruction tuning; None: its
            caption is learned, or the answer to its question.
    """

    weight: int = 0
    phrase: Phrase | None = None

    def __init__(
        self, name: str, files: Files, tars: Sequence[str], sizes: Sequence[int], digest: str
    ) -> None:
        self.name, self.files, self.digest = name, files, digest
        self.tars, self.sizes = tuple(tars), tuple(sizes)
        self.spans = lru_cache(maxsize=OPEN_SHARDS)(self._spans)
        self._records = lru_cache(maxsize=OPEN_SHARDS)(self._read_records)
        self._file = lru_cache(maxsize=OPEN_SHARDS)(self._open)

    def read(self, shard: int, index: int) -> bytes:
        """The bytes of all members of a usable sample: one ``pread``."""
        offset, length = self.spans(shard)[index].tolist()
        data = os.pread(self._file(self.tars[shard]).number, length, offset)
        if len(data) != length:
            raise BadSample(f"{self.tars[shard]} ends before byte {offset + length}")
        return data

    def members(self, shard: int, index: int) -> dict[str, bytes]:
        """The members of a usable sample by extension; the json always as a full record."""
        members = span_members(self.read(shard, index))
        if (
            members.get("json", b"").removeprefix(BOM_UTF8).startswith(b"[")
        ):  # LAVIS's layout: a list of captions
            members["json"] = self._full_record(shard, index, members["json"])
        return members

    def _full_record(self, shard: int, index: int, listed: bytes) -> bytes:
        """The record of a sample whose json is a plain list: from the parquet beside the tar."""
        return record_from_table(self._records(shard), index)

    def key(self, shard: int, index: int) -> str:
        """A name of the sample that is unique in its shard, for one whose record has no uid."""
        return str(index)

    def lengths(self, shard: int) -> np.ndarray:
        """Lengths of a shard's samples, negative for text without an image, int64 (N).

        They are for batches of like lengths (``pipeline.loading.grouping``); of captions all count
        as one.
        """
        return np.ones(self.sizes[shard], dtype=np.int64)

    def uid_parts(self, shard: int) -> tuple[str, str]:
        """(source, shard) for ``make_uid``, where a sample's record has no uid."""
        return Path(self.name).name, Path(self.tars[shard]).stem

    def fetch(self, shard: int) -> bool:
        """Copy the files of a shard to the node's cache, if they are remote.

        Returns:
            False if another process of this node is still fetching one of them.

        Raises:
            Changed, FileNotFoundError, NoRoom, Unreachable: see ``NodeCache.fetch``.
        """
        if not isinstance(self.files, CachedFiles):
            return True
        here = [self.files.fetch(name) for name in self._names(shard)]
        return all(here)

    def _names(self, shard: int) -> list[str]:
        """Names of the files that the samples of a shard are read from."""
        return [self._parquet(shard), self.tars[shard]]

    def _parquet(self, shard: int) -> str:
        return str(Path(self.tars[shard]).with_suffix(".parquet"))

    @property
    def remote(self) -> bool:
        """Whether shards have to be fetched."""
        return isinstance(self.files, CachedFiles)

    def _open(self, tar: str) -> "_Descriptor":
        return _Descriptor(self.files.path(tar))

    def _spans(self, shard: int) -> np.ndarray:
        """(offset, length) of every usable sample of a shard, int64 (N, 2)."""
        parquet = self._parquet(shard)
        table = pq.read_table(self.files.path(parquet), columns=["status", "offset", "length"])
        spans = np.stack([table["offset"].to_numpy(), table["length"].to_numpy()], axis=1)
        spans = spans[table["status"].to_numpy(zero_copy_only=False) == "ok"]
        if len(spans) != self.sizes[shard]:
            raise Changed(
                f"{self.name}/{parquet}: {len(spans)} usable rows, its commit record says "
                f"{self.sizes[shard]}; the output was changed after it was written"
            )
        return spans

    def _read_records(self, shard: int) -> pa.Table:
        """What the parquet says of a shard's usable samples."""
        parquet = self.files.path(self._parquet(shard))
        table = pq.read_table(parquet, columns=["status", *RECORD_COLUMNS])
        return table.filter(pc.equal(table["status"], "ok"))


class ForeignShards(Shards):
    """A folder of tars that others wrote, indexed on first open; the node keeps the indices."""

    def __init__(
        self, name: str, files: Files, tars: Sequence[Entry], cache: NodeCache, marks: Sequence[str]
    ) -> None:
        found = zip(tars, marks, strict=True)
        self._indices = [tar_index(files, tar, f"{name}\0{mark}", cache) for tar, mark in found]
        sizes = [len(index.spans) for index in self._indices]
        digest = f"{derive_seed([(tar.name, tar.size) for tar in tars]):016x}"
        super().__init__(name, files, [tar.name for tar in tars], sizes, digest)

    def key(self, shard: int, index: int) -> str:
        return str(self._indices[shard].keys[index])

    def _names(self, shard: int) -> list[str]:
        return [self.tars[shard]]

    def _full_record(self, shard: int, index: int, listed: bytes) -> bytes:
        return record_from_list(listed)

    def _spans(self, shard: int) -> np.ndarray:
        return self._indices[shard].spans


@dataclass(frozen=True)
class TarIndex:
    """The samples of a tar.

    Attributes:
        keys: their keys, str (N).
        spans: their (offset, length), int64 (N, 2).
    """

    keys: np.ndarray
    spans: np.ndarray


def tar_index(files: Files, tar: Entry, mark: str, cache: NodeCache) -> TarIndex:
    """The index of a tar, walked once and kept in the node's cache.

    Args:
        mark: text that changes when the tar does.

    Raises:
        ValueError: the tar cannot be read or is not sorted by sample; the message names it.
    """
    kept = cache.path_for(f"index 2\0{tar.name}\0{tar.size}\0{mark}", ".npz")
    if kept.is_file():
        with np.load(kept, allow_pickle=False) as found:
            return TarIndex(found["keys"], found["spans"])
    rows = index_tar(files.path(tar.name))
    spans = np.asarray([(offset, length) for _, offset, length in rows], dtype=np.int64)
    index = TarIndex(np.asarray([key for key, _, _ in rows], dtype=str), spans.reshape(-1, 2))
    data = io.BytesIO()
    np.savez(data, keys=index.keys, spans=index.spans)
    cache.keep(kept, data.getvalue())
    return index


def open_shards(url: str, cache: NodeCache | None = None) -> Shards:
    """Open one ``--data``: an output of the CapFilt stage, or a folder of tars.

    Args:
        url: path or URL of the output or folder.
        cache: cache for copies of remote shards and indices of foreign tars; None takes the
            default one.

    Raises:
        ValueError: nothing there, nothing committed yet, no usable sample, or a broken tar.
    """
    storage, cache = open_storage(url), cache or NodeCache()
    if isinstance(storage, LocalStorage) and not storage.root.is_dir():
        raise ValueError(f"--data {url}: no such folder; give a CapFilt output or a folder of tars")
    local = isinstance(storage, LocalStorage)
    commits = committed(url) if local else committed_once(storage, cache)
    if commits:
        files = _committed_files(storage, commits, cache)
        sizes = [commit.ok for commit in commits]
        shards = Shards(url, files, [c.tar for c in commits], sizes, manifest_hash(commits))
    else:
        shards = _open_foreign(url, storage, cache)
    if sum(shards.sizes) == 0:
        raise ValueError(f"--data {url}: no usable sample in its {len(shards.tars)} shards")
    return shards


def _committed_files(storage: Storage, commits: Sequence[Commit], cache: NodeCache) -> Files:
    if isinstance(storage, LocalStorage):
        return storage
    checks = {commit.tar: (commit.tar_bytes, commit.tar_sha256) for commit in commits}
    checks |= {commit.parquet: (-1, commit.parquet_sha256) for commit in commits}
    return CachedFiles(storage, cache, checks)


def _open_foreign(url: str, storage: Storage, cache: NodeCache) -> Shards:
    tars = [e for e in storage.entries() if e.name.endswith(".tar") and not is_hidden(e.name)]
    if tars:
        if isinstance(storage, LocalStorage):
            marks = [str(storage.path(tar.name).stat().st_mtime_ns) for tar in tars]
            return ForeignShards(url, storage, tars, cache, marks)
        files = CachedFiles(storage, cache, {tar.name: (tar.size, "") for tar in tars})
        return ForeignShards(url, files, tars, cache, [tar.etag for tar in tars])
    begun = isinstance(storage, LocalStorage) and storage.path("shards").is_dir()
    if begun or storage.exists("plan.json") or storage.entries("shards"):
        raise ValueError(
            f"--data {url}: no commit record in shards/ yet; let jobs/capfilt.py commit a shard"
        )
    raise ValueError(f"--data {url}: neither commit records nor *.tar files in this folder")


def data_hash(sources: Sequence[Shards]) -> str:
    """One hash of all sources' content: kept in checkpoints and compared over ranks."""
    return f"{derive_seed(*(source.digest for source in sources)):016x}"


class _Descriptor:
    """An open file that is closed with its last reference."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.number)
