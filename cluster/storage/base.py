"""The interface of a store of files, its errors, and the names and URLs by which files are known.

``cluster.storage.local`` and ``cluster.storage.s3`` implement ``Storage``;
``cluster.storage.open.open_storage`` chooses between them by the URL.
"""

import contextlib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Conflict(ValueError):
    """The final name is taken by other bytes.

    It can be made from its message alone, as every exception that travels between processes must.

    Attributes:
        existing: the bytes already there.
    """

    existing: bytes = b""

    @classmethod
    def between(cls, name: str, existing: bytes, data: bytes) -> "Conflict":
        """The conflict of the bytes at ``name`` with the bytes that should be there."""
        old, new = hashlib.sha256(existing).hexdigest(), hashlib.sha256(data).hexdigest()
        made = cls(
            f"{name} is already committed with sha256 {old}, this attempt made {new}; "
            "use another output, or find out why the same inputs gave different bytes"
        )
        made.existing = existing
        return made


class Unreachable(RuntimeError):
    """The store answered in none of the attempts: whether the file is good cannot be said."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished file.

    Attributes:
        name: name relative to the store's root.
        size: size in bytes.
        etag: the store's own mark of the content; "" in a store without such marks.
    """

    name: str
    size: int
    etag: str = ""


class Storage(Protocol):
    """A tree of immutable files, addressed by names relative to its root ("" is the root).

    ``publish`` creates a file that never changes afterwards, ``replace`` writes a derived one that
    may, ``remove`` deletes one; the methods are documented where they are implemented.
    """

    @property
    def url(self) -> str: ...
    def exists(self, name: str) -> bool: ...
    def read(self, name: str) -> bytes: ...
    def read_range(self, name: str, offset: int, length: int) -> bytes: ...
    def entries(self, folder: str = "", deep: bool = False) -> list[Entry]: ...
    def local_copy(self, name: str) -> contextlib.AbstractContextManager[Path]: ...
    def download(self, name: str, path: Path, streams: int = 1) -> None: ...
    def publish(self, name: str, data: bytes) -> bool: ...
    def replace(self, name: str, data: bytes) -> None: ...
    def remove(self, name: str) -> None: ...
    def sweep(self) -> None: ...


def split_url(url: str) -> tuple[str, str]:
    """(folder, name) of a URL or path: the folder for ``open_storage``, and the file in it."""
    if url.startswith("s3://"):
        folder, _, name = url.rstrip("/").rpartition("/")
        return folder, name
    path = local_path(url)
    return str(path.parent), path.name


def as_url(path: str | Path) -> str:
    """A path or URL as text; a URL whose slashes ``Path`` joined is whole again."""
    text = str(path)
    if text.startswith("s3:/") and not text.startswith("s3://"):
        return "s3://" + text.removeprefix("s3:/")
    return text


def absolute_url(url: str) -> str:
    """The URL or path as it is valid in any working directory: workers have their own."""
    return url if url.startswith("s3://") else str(local_path(url).resolve())


def local_path(url: str) -> Path:
    """The local path behind ``url``; raises ValueError for every scheme but ``file://``."""
    if url.startswith("file://"):
        return Path(url.removeprefix("file://"))
    scheme = re.match(r"^([A-Za-z][A-Za-z0-9+.-]*):", url)
    if scheme:
        raise ValueError(
            f"storage {url!r}: scheme {scheme[1]!r} is not supported here; "
            "use a local or mounted path"
        )
    if not url:
        raise ValueError("storage '': the path is empty; give a folder")
    return Path(url)


def check_name(name: str) -> None:
    """Raise ValueError for a name that is empty, absolute, or leaves its root."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        raise ValueError(f"storage name {name!r} must be relative and must not contain '..'")
