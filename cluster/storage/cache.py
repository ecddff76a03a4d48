"""A node's own copies of remote files, fetched once for all its processes and checked.

    FOLDER/ab/abcdef….tar      a copy, under the hash of where it comes from and what it must hold
    FOLDER/ab/abcdef….lock     held by the one process that fetches it; the others wait for it

A copy appears by rename when it is whole. When all copies together exceed the limit, or the disk is
full, the least recently used ones are removed; a process that has one open can read on. The folder
may be one that several nodes see: each writes under names of its own, whether or not the locks of
that file system reach the other nodes.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cluster.storage.base import Storage

_GIB = 1 << 30
_STALE_S = 24 * 3600
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Changed(RuntimeError):
    """A file differs from its record: neither its samples nor replacements for them may be used."""


class NoRoom(ValueError):
    """The disk of the cache does not hold one more copy."""


def default_folder() -> Path:
    """``$ISTHMUS_CACHE``, or ``isthmus`` in the user's cache folder."""
    named = os.environ.get("ISTHMUS_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isthmus"


@dataclass(frozen=True)
class NodeCache:
    """The copies of a node; the object is small and is pickled to workers.

    Attributes:
        folder: folder of the copies.
        limit_gb: size in GiB of all copies together.
        streams: ranged reads at the same time of a file that is fetched from S3.
    """

    folder: Path = field(default_factory=default_folder)
    limit_gb: float = 200.0
    streams: int = 8

    def fetch(self, storage: Storage, name: str, size: int = -1, sha256: str = "") -> Path:
        """The path of a local copy of ``name``, to be opened at once: later it may be removed.

        Args:
            size, sha256: expected size and digest; -1 and "" where they are not known.

        Raises:
            Changed: the file there has another size or digest; names both.
            FileNotFoundError: no such file there.
            NoRoom: the disk is full, also after all other copies were removed.
            Unreachable: the store does not answer.
        """
        final = self._copy_of(storage, name, size, sha256)
        if not _touch(final):
            with self.only_one(final):
                if not _touch(final):
                    self._fill(final, storage, name, size, sha256)
        return final

    def fetch_unless_busy(
        self, storage: Storage, name: str, size: int = -1, sha256: str = ""
    ) -> bool:
        """Fetch a file as ``fetch`` does, unless another process of this node is fetching it.

        Returns:
            True if the copy is there; False if another process is still fetching it.
        """
        final = self._copy_of(storage, name, size, sha256)
        if _touch(final):
            return True
        with self._locked(final, wait=False) as mine:
            if mine and not _touch(final):
                self._fill(final, storage, name, size, sha256)
            return mine

    def _copy_of(self, storage: Storage, name: str, size: int, sha256: str) -> Path:
        return self.path_for(f"{storage.url}/{name}\0{size}\0{sha256}", Path(name).suffix)

    def path_for(self, identity: str, suffix: str) -> Path:
        """The path of a copy that ``identity`` describes completely."""
        digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        return self.folder / digest[:2] / f"{digest}{suffix}"

    def keep(self, final: Path, data: bytes) -> None:
        """Write a small derived file (an index) at a ``path_for``, whole or not at all."""
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = _aside(final)
        aside.write_bytes(data)
        os.replace(aside, final)

    @contextlib.contextmanager
    def only_one(self, final: Path) -> Iterator[None]:
        """Hold the file's lock, which the kernel releases when a process dies, however it dies."""
        with self._locked(final, wait=True):
            yield

    @contextlib.contextmanager
    def _locked(self, final: Path, *, wait: bool) -> Iterator[bool]:
        """Hold the file's lock; yields False where another process has it, unless ``wait``."""
        final.parent.mkdir(parents=True, exist_ok=True)
        with open(final.with_suffix(".lock"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _fill(self, final: Path, storage: Storage, name: str, size: int, sha256: str) -> None:
        aside = _aside(final)
        try:
            self._download(storage, name, aside, final)
            found = aside.stat().st_size
            with open(aside, "rb") as copy:
                digest = hashlib.file_digest(copy, "sha256").hexdigest()
            if (size >= 0 and found != size) or (sha256 and digest != sha256):
                raise Changed(
                    f"{storage.url}/{name} has {found:,} bytes and sha256 {digest}, its record "
                    f"says {size:,} and {sha256}: it was changed after it was written; restore it"
                )
            os.replace(aside, final)
        finally:
            aside.unlink(missing_ok=True)
        self._remove(final, self._excess(final))

    def _download(self, storage: Storage, name: str, aside: Path, final: Path) -> None:
        """Fetch a file; where the disk is full, once more without the other copies."""
        _sweep(final)
        try:
            return storage.download(name, aside, self.streams)
        except OSError as full:
            if full.errno not in _FULL:
                raise
            aside.unlink(missing_ok=True)
            self._remove(final, float("inf"))
        try:
            storage.download(name, aside, self.streams)
        except OSError as full:
            if full.errno not in _FULL:
                raise
            raise NoRoom(
                f"no room for {storage.url}/{name} in this node's cache {self.folder} "
                f"({os.strerror(full.errno)}), with all other copies removed; make room there, or "
                "name a folder on a larger disk: ISTHMUS_CACHE=FOLDER"
            ) from full

    def _copies(self, newest: Path) -> list[tuple[int, int, Path]]:
        """(time of last use, size, path) of every copy but one, the longest unused first."""
        files = []
        for path in self.folder.glob("??/*"):
            copy = path.is_file() and not path.name.startswith(".") and path.suffix != ".lock"
            if copy and path != newest:  # folders are rewritten models, which are kept
                with contextlib.suppress(FileNotFoundError):  # another process was quicker
                    found = path.stat()
                    files.append((found.st_mtime_ns, found.st_size, path))
        return sorted(files)

    def _excess(self, newest: Path) -> float:
        """Bytes that all copies together have over the limit."""
        held = newest.stat().st_size + sum(size for _, size, _ in self._copies(newest))
        return held - self.limit_gb * _GIB

    def _remove(self, newest: Path, excess: float) -> None:
        """Remove the longest unused copies, until so many bytes are free or one is left."""
        for _, size, path in self._copies(newest):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size


def _aside(final: Path) -> Path:
    """A name for a copy that is being written, which no other process of any node takes."""
    return final.with_name(f".{final.name}.{_host()}.{os.getpid()}.{time.monotonic_ns()}.part")


def _sweep(final: Path) -> None:
    """Remove what dead processes have left of a file whose lock this one holds: the lock keeps
    others of this node away, and those of another node are known by their age.
    """
    for left in final.parent.glob(f".{final.name}.*.part"):
        with contextlib.suppress(FileNotFoundError):
            mine = left.name.startswith(f".{final.name}.{_host()}.")
            if mine or time.time() - left.stat().st_mtime > _STALE_S:
                left.unlink()


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _touch(path: Path) -> bool:
    """Mark a copy as just used; False where there is none."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
