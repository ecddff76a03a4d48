"""Files in a local or shared folder, published create-only.

A published file appears at its final name whole or not at all, and once there it never changes:
temporary file in the same folder, fsync, ``os.link`` (fails if the name exists, so of any number
of racing writers exactly one wins), fsync of the folder.
"""

import contextlib
import itertools
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.storage.base import Conflict, Entry, check_name

_TEMPORARY = re.compile(r"^\..+\.(?P<host>[^.]+)\.(?P<pid>\d+)\.\d+\.tmp$")
_STALE_SECONDS = 24 * 3600
_counter = itertools.count()


class LocalStorage:
    """The files of a folder on a local or shared POSIX file system that has hard links."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        """The folder, as it was given."""
        return str(self.root)

    def path(self, name: str) -> Path:
        """The file's path, refusing names that leave the root."""
        check_name(name)
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

    def entries(self, folder: str = "", deep: bool = False) -> list[Entry]:
        """Finished files in ``folder`` (``deep``: and below it) with their sizes, by name.

        Hidden files and folders are left out: temporary files are hidden. Links to folders are
        followed; a folder that is reached twice is listed once (see ``_folders``).
        """
        start = self.path(folder) if folder else self.root
        found: list[Entry] = []
        for base, files in _folders(start, deep):
            for file in files:
                if not file.startswith("."):
                    path = base / file
                    found.append(Entry(path.relative_to(self.root).as_posix(), _size(path)))
        return sorted(found, key=lambda entry: entry.name)

    @contextlib.contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """The file itself; elsewhere, a copy that lasts as long as the context.

        Raises:
            FileNotFoundError: no such file.
        """
        path = self.path(name)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        yield path

    def download(self, name: str, path: Path, streams: int = 1) -> None:
        """Write a copy to a new file; the caller renames it when it is whole.

        ``streams`` is taken for the sake of the common signature and not used.
        """
        shutil.copyfile(self.path(name), path)

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
                raise Conflict.between(str(final), existing, data) from None
            return False
        finally:
            temporary.unlink()
        sync_path(final.parent)
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Write a derived file, such as the gallery, that later calls may replace; atomically."""
        final = self.path(name)
        os.replace(self._write_temporary(final, data), final)
        sync_path(final.parent)

    def remove(self, name: str) -> None:
        """Delete a file; it may be gone already."""
        self.path(name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove temporary files of dead writers: known here by process id, elsewhere by age."""
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


def _folders(start: Path, deep: bool) -> Iterator[tuple[Path, list[str]]]:
    """A folder, and with ``deep`` those below it, each with the names of its files.

    Links to folders are followed after all that is reached without them, by name: so each folder
    comes once, under its own name where it has one here, on every machine the same. A link to a
    folder that holds ``start`` is a loop and is left out.
    """
    seen: set[tuple[int, int]] = set()
    here = start.resolve()
    waiting = [start]
    while waiting:
        links: list[Path] = []
        for top in waiting:
            for where, folders, files in os.walk(top):
                base, shown = Path(where), sorted(f for f in folders if not f.startswith("."))
                links += [base / name for name in shown if (base / name).is_symlink()]
                folders[:] = [name for name in shown if deep and not (base / name).is_symlink()]
                status = base.stat()
                if (status.st_dev, status.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                yield base, files
        waiting = [link for link in sorted(links) if deep and not here.is_relative_to(_end(link))]


def _end(link: Path) -> Path:
    """Where a link leads; the link itself where it leads in a circle."""
    try:
        return link.resolve()
    except (OSError, RuntimeError):
        return link


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link that leads nowhere: reading it will say so
        return 0


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


def sync_path(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
