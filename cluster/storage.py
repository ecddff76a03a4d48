"""Where bytes live: a small interface, and its local form with create-only publishing.

A published file appears at its final name whole or not at all, and once there it never changes:
temporary file in the same folder, fsync, ``os.link`` (fails if the name exists, so of any number
of racing writers exactly one wins), fsync of the folder.
"""

import contextlib
import hashlib
import itertools
import os
import re
import socket
import time
from pathlib import Path
from typing import Protocol

_TEMPORARY = re.compile(r"^\..+\.(?P<host>[^.]+)\.(?P<pid>\d+)\.\d+\.tmp$")
_STALE_SECONDS = 24 * 3600
_counter = itertools.count()


class Conflict(ValueError):
    """The final name is taken by other bytes; ``existing`` are the bytes already there."""

    def __init__(self, name: str, existing: bytes, data: bytes) -> None:
        old, new = hashlib.sha256(existing).hexdigest(), hashlib.sha256(data).hexdigest()
        super().__init__(
            f"{name} is already committed with sha256 {old}, this attempt made {new}; "
            "use another output, or find out why the same inputs gave different bytes"
        )
        self.existing = existing


class Storage(Protocol):
    """A tree of immutable files, addressed by names relative to its root."""

    url: str

    def exists(self, name: str) -> bool: ...
    def read(self, name: str) -> bytes: ...
    def read_range(self, name: str, offset: int, length: int) -> bytes: ...
    def list(self, folder: str) -> list[str]: ...
    def publish(self, name: str, data: bytes) -> bool: ...
    def replace(self, name: str, data: bytes) -> None: ...
    def sweep(self) -> None: ...


class LocalStorage:
    """A folder on a local or shared POSIX file system (one that has hard links)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def path(self, name: str) -> Path:
        """The file's path, refusing names that leave the root."""
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts:
            raise ValueError(f"storage name {name!r} must be relative and must not contain '..'")
        return self.root / name

    def exists(self, name: str) -> bool:
        return self.path(name).is_file()

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``: fewer only where the file ends."""
        with open(self.path(name), "rb") as file:
            file.seek(offset)
            return file.read(length)

    def list(self, folder: str) -> list[str]:
        """Names of the finished files directly in ``folder``, sorted; [] where there is none."""
        where = self.path(folder)
        if not where.is_dir():
            return []
        names = sorted(entry.name for entry in where.iterdir() if not entry.name.startswith("."))
        return [f"{folder}/{name}" for name in names]

    def publish(self, name: str, data: bytes) -> bool:
        """Create ``name`` with exactly ``data``.

        Returns:
            True if this call created it, False if it was already there with the same bytes.

        Raises:
            Conflict: it is there with other bytes.
        """
        final = self.path(name)
        temporary = self._write_temporary(final, data)
        try:
            os.link(temporary, final)
        except FileExistsError:
            existing = final.read_bytes()
            if existing != data:
                raise Conflict(str(final), existing, data) from None
            return False
        finally:
            temporary.unlink()
        _sync_folder(final.parent)
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Write a derived file that may be rewritten (summary, gallery), atomically."""
        final = self.path(name)
        os.replace(self._write_temporary(final, data), final)
        _sync_folder(final.parent)

    def sweep(self) -> None:
        """Remove temporary files whose writer is dead: this host's by process id, others by age."""
        for entry in self.root.rglob(".*.tmp"):
            found = _TEMPORARY.match(entry.name)
            if found and not _writer_lives(entry, found["host"], int(found["pid"])):
                entry.unlink(missing_ok=True)

    def _write_temporary(self, final: Path, data: bytes) -> Path:
        final.parent.mkdir(parents=True, exist_ok=True)
        unique = f"{_host()}.{os.getpid()}.{next(_counter)}"
        temporary = final.parent / f".{final.name}.{unique}.tmp"
        # A leftover of a dead process with this very id would be in the way: write over it.
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return temporary


def open_storage(url: str) -> LocalStorage:
    """The storage behind ``url``: a local path or ``file://`` URL.

    Raises:
        ValueError: another scheme (``s3://``, ``pipe:`` ...).
    """
    return LocalStorage(local_path(url))


def local_path(url: str) -> Path:
    """The local path behind ``url``; raises ValueError for every scheme but ``file://``."""
    if url.startswith("file://"):
        return Path(url.removeprefix("file://"))
    scheme = re.match(r"^([A-Za-z][A-Za-z0-9+.-]*):", url)
    if scheme:
        raise ValueError(
            f"storage {url!r}: scheme {scheme[1]!r} is not supported; use a local or mounted path"
        )
    if not url:
        raise ValueError("storage '': the path is empty; give a folder")
    return Path(url)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


def _writer_lives(entry: Path, host: str, pid: int) -> bool:
    if host != _host():
        with contextlib.suppress(FileNotFoundError):
            return time.time() - entry.stat().st_mtime < _STALE_SECONDS
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
