"""A node's own copies of remote files, fetched once for all its processes and checked.

    FOLDER/ab/abcdef….tar      a copy, under the hash of where it comes from and what it must hold
    FOLDER/ab/abcdef….lock     held by the one process that fetches it; the others wait for it

A copy appears by rename when it is whole. When all copies together exceed the limit, the least
recently used ones are removed; a process that has one open can read on.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cluster.storage.base import Storage

_GIB = 1 << 30


class Changed(RuntimeError):
    """A file differs from its record: neither its samples nor replacements for them may be used."""


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
    """

    folder: Path = field(default_factory=default_folder)
    limit_gb: float = 200.0

    def fetch(self, storage: Storage, name: str, size: int = -1, sha256: str = "") -> Path:
        """The path of a local copy of ``name``, to be opened at once: later it may be removed.

        Args:
            size, sha256: expected size and digest; -1 and "" where they are not known.

        Raises:
            Changed: the file there has another size or digest; names both.
            FileNotFoundError: no such file there.
            Unreachable: the store does not answer.
        """
        final = self.path_for(f"{storage.url}/{name}\0{size}\0{sha256}", Path(name).suffix)
        if not _touch(final):
            with self.only_one(final):
                if not _touch(final):
                    self._fill(final, storage, name, size, sha256)
        return final

    def path_for(self, identity: str, suffix: str) -> Path:
        """The path of a copy that ``identity`` describes completely."""
        digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        return self.folder / digest[:2] / f"{digest}{suffix}"

    def keep(self, final: Path, data: bytes) -> None:
        """Write a small derived file (an index) at a ``path_for``, whole or not at all."""
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = final.with_name(f".{final.name}.{os.getpid()}.{time.monotonic_ns()}.part")
        aside.write_bytes(data)
        os.replace(aside, final)

    @contextlib.contextmanager
    def only_one(self, final: Path) -> Iterator[None]:
        """Hold the file's lock, which the kernel releases when a process dies, however it dies."""
        final.parent.mkdir(parents=True, exist_ok=True)
        with open(final.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _fill(self, final: Path, storage: Storage, name: str, size: int, sha256: str) -> None:
        aside = final.with_name(f".{final.name}.part")  # the lock's holder alone writes it
        storage.download(name, aside)
        found = aside.stat().st_size
        with open(aside, "rb") as copy:
            digest = hashlib.file_digest(copy, "sha256").hexdigest()
        if (size >= 0 and found != size) or (sha256 and digest != sha256):
            aside.unlink()
            raise Changed(
                f"{storage.url}/{name} has {found:,} bytes and sha256 {digest}, its record says "
                f"{size:,} and {sha256}: it was changed after it was written; restore it"
            )
        os.replace(aside, final)
        self._make_room(final)

    def _make_room(self, newest: Path) -> None:
        files = []
        for path in self.folder.glob("??/*"):
            copy = path.is_file() and not path.name.startswith(".") and path.suffix != ".lock"
            if copy and path != newest:  # folders are rewritten models, which are kept
                with contextlib.suppress(FileNotFoundError):  # another process was quicker
                    found = path.stat()
                    files.append((found.st_mtime_ns, found.st_size, path))
        excess = newest.stat().st_size + sum(size for _, size, _ in files)
        excess -= int(self.limit_gb * _GIB)
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size


def _touch(path: Path) -> bool:
    """Mark a copy as just used; False where there is none."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
