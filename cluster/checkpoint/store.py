"""The checkpoints of one run, in a local folder or on S3.

    OUT/checkpoints/step_00000200/…   one checkpoint (``cluster.checkpoint.files``)
                    latest            name of the newest one
                    best              name of the one with the lowest metric

Locally, a folder is written aside under a name that never counts, synced, read back, renamed, and
only then named by ``latest``, itself replaced atomically. On S3, ``state.json`` is uploaded last
and deleted first: a step without it does not count. A kill at any moment leaves the last good one.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cluster.checkpoint.files import STATE, Checkpoint, Damaged, as_record, read, walk
from cluster.checkpoint.pins import pinned
from cluster.storage.base import Storage, local_path
from cluster.storage.cache import NodeCache
from cluster.storage.local import LocalStorage, sync_path
from cluster.storage.open import open_storage
from cluster.storage.s3 import S3Storage

FOLDER, LATEST, BEST = "checkpoints", "latest", "best"
NAME = re.compile(r"^step_\d{8}$")
_COPIES = 8  # of S3 checkpoints in a node's cache
_SET_ASIDE = "state.damaged.json"


class Store(Protocol):
    """The checkpoints of one run, by names such as ``step_00000200``."""

    @property
    def url(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    @property
    def files(self) -> Storage: ...
    def names(self) -> list[str]: ...
    def pointer(self, kind: str) -> str: ...
    def point(self, kind: str, name: str) -> None: ...
    def state(self, name: str) -> dict[str, Any]: ...
    def open(self, name: str) -> Checkpoint: ...
    def make_aside(self, name: str) -> Path: ...
    def publish(self, aside: Path, name: str) -> None: ...
    def remove(self, name: str) -> None: ...
    def set_aside(self, name: str) -> str: ...
    def pull_logs(self) -> None: ...
    def push_logs(self) -> None: ...


class LocalStore:
    """The checkpoints below a run's folder on a local or shared file system."""

    def __init__(self, run: Path) -> None:
        self.folder = run
        self._root = run / FOLDER

    @property
    def url(self) -> str:
        """The run's folder, as it was given."""
        return str(self.folder)

    @property
    def files(self) -> Storage:
        """All files of the run."""
        return LocalStorage(self.folder)

    def names(self) -> list[str]:
        """The checkpoints, oldest first."""
        if not self._root.is_dir():
            return []
        return sorted(entry.name for entry in self._root.iterdir() if NAME.match(entry.name))

    def pointer(self, kind: str) -> str:
        """The name that ``latest`` or ``best`` holds, "" without one."""
        path = self._root / kind
        return path.read_text().strip() if path.is_file() else ""

    def point(self, kind: str, name: str) -> None:
        """Set a pointer, atomically."""
        aside = self._root / f".{kind}.partial"
        aside.write_text(name + "\n")
        sync_path(aside)
        os.replace(aside, self._root / kind)
        sync_path(self._root)

    def state(self, name: str) -> dict[str, Any]:
        """A checkpoint's state alone; raises Damaged."""
        return self.open(name).state

    def open(self, name: str) -> Checkpoint:
        """A checkpoint, not yet verified; raises Damaged where its records cannot be read."""
        return read(self._root / name)

    def make_aside(self, name: str) -> Path:
        """An empty folder to fill; what an interrupted write has left is removed."""
        self._root.mkdir(parents=True, exist_ok=True)
        for leftover in self._root.glob(".step_*"):
            shutil.rmtree(leftover)
        aside = self._root / f".{name}.partial"
        aside.mkdir()
        return aside

    def publish(self, aside: Path, name: str) -> None:
        """Let a filled folder be the checkpoint ``name``."""
        final = self._root / name
        replaced = self._root / f".{name}.replaced"
        if final.exists():  # the same step saved again, after a resume from an earlier one
            os.rename(final, replaced)
        os.rename(aside, final)
        sync_path(self._root)
        shutil.rmtree(replaced, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Remove a checkpoint that nobody has pinned; killed halfway, it does not count."""
        aside, before = self._root / f".{name}.removed", self.names()
        os.rename(self._root / name, aside)
        if name in pinned(self.files, before):
            os.rename(aside, self._root / name)
        else:
            shutil.rmtree(aside)

    def set_aside(self, name: str) -> str:
        """Let a checkpoint no longer count, and keep its files; says where."""
        taken = len(list(self._root.glob(f"{name}.damaged*")))
        aside = self._root / f"{name}.damaged{taken or ''}"
        os.rename(self._root / name, aside)
        return str(aside)

    def pull_logs(self) -> None:
        """Nothing: the run's log is where it is written."""

    def push_logs(self) -> None:
        """Nothing: the run's log is where it is written."""


class S3Store:
    """The checkpoints below ``s3://bucket/prefix``; the log is kept in this node's cache."""

    def __init__(self, storage: S3Storage, cache: NodeCache) -> None:
        self._storage, self._cache = storage, cache
        digest = hashlib.sha256(storage.url.encode()).hexdigest()[:16]
        self.folder = cache.folder / "runs" / f"{Path(storage.prefix).name}-{digest}"

    @property
    def url(self) -> str:
        """The run's URL."""
        return self._storage.url

    @property
    def files(self) -> Storage:
        """All files of the run."""
        return self._storage

    def names(self) -> list[str]:
        """The checkpoints that have their record, oldest first."""
        found = []
        for entry in self._storage.entries(FOLDER, deep=True):
            step, _, file = entry.name.removeprefix(f"{FOLDER}/").partition("/")
            if file == STATE and NAME.match(step):
                found.append(step)
        return sorted(found)

    def pointer(self, kind: str) -> str:
        """The name that ``latest`` or ``best`` holds, "" without one."""
        try:
            return self._storage.read(f"{FOLDER}/{kind}").decode().strip()
        except FileNotFoundError:
            return ""

    def point(self, kind: str, name: str) -> None:
        """Set a pointer."""
        self._storage.replace(f"{FOLDER}/{kind}", f"{name}\n".encode())

    def state(self, name: str) -> dict[str, Any]:
        """A checkpoint's state alone; raises Damaged."""
        return as_record(self._record(name), f"{self.url}/{FOLDER}/{name}/{STATE}")

    def open(self, name: str) -> Checkpoint:
        """A verified copy in the node's cache, fetched once for all its processes.

        Raises:
            Damaged: the files differ from those that were saved.
        """
        where, record = f"{self.url}/{FOLDER}/{name}", self._record(name)
        self._check_sizes(name, as_record(record, f"{where}/{STATE}"))
        digest = hashlib.sha256(where.encode() + b"\0" + record).hexdigest()[:16]
        copies = self._cache.folder / "checkpoints"
        copy = copies / f"{name}-{digest}"
        with self._cache.only_one(copy):
            if not copy.is_dir():
                self._fetch(name, copy, where)
            os.utime(copy)
        _forget_oldest(copies)
        return read(copy, where)

    def make_aside(self, name: str) -> Path:
        """An empty local folder to fill."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".step_*"):
            shutil.rmtree(leftover)
        return Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self.folder))

    def publish(self, aside: Path, name: str) -> None:
        """Upload a filled folder, its record last."""
        target = f"{FOLDER}/{name}"
        self._storage.remove(f"{target}/{STATE}")  # of an earlier attempt at this step
        for file in walk(aside):
            if file != STATE:
                self._storage.upload(f"{target}/{file}", aside / file)
        self._storage.upload(f"{target}/{STATE}", aside / STATE)
        shutil.rmtree(aside)

    def remove(self, name: str) -> None:
        """Remove a checkpoint that nobody has pinned, its record first."""
        record, before = self._record(name), self.names()
        self._storage.remove(f"{FOLDER}/{name}/{STATE}")
        if name in pinned(self.files, before):
            self._storage.replace(f"{FOLDER}/{name}/{STATE}", record)
            return
        for entry in self._storage.entries(f"{FOLDER}/{name}", deep=True):
            self._storage.remove(entry.name)

    def set_aside(self, name: str) -> str:
        """Let a checkpoint no longer count, and keep its files; says where."""
        record = f"{FOLDER}/{name}/{STATE}"
        with contextlib.suppress(FileNotFoundError):
            data = self._storage.read(record)
            self._storage.replace(f"{FOLDER}/{name}/{_SET_ASIDE}", data)
            self._storage.remove(record)
        return f"{self.url}/{FOLDER}/{name}/{_SET_ASIDE}"

    def pull_logs(self) -> None:
        """Bring the run's logs here, as they were at its last save. TensorBoard's stay where they
        are: it goes on in a file of its own.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self._logs():
            path.unlink()
        for entry in self._storage.entries():
            if entry.name.endswith(".jsonl"):
                self._storage.download(entry.name, self.folder / entry.name)

    def push_logs(self) -> None:
        """Upload the run's logs as they are now."""
        for path in self._logs():
            self._storage.replace(path.relative_to(self.folder).as_posix(), path.read_bytes())

    def _logs(self) -> list[Path]:
        """The logs here: the run's own, and TensorBoard's, which reads them on S3 too."""
        return [*self.folder.glob("*.jsonl"), *self.folder.glob("tensorboard/*")]

    def _record(self, name: str) -> bytes:
        try:
            return self._storage.read(f"{FOLDER}/{name}/{STATE}")
        except FileNotFoundError as gone:
            raise Damaged.file(f"{self.url}/{FOLDER}/{name}/{STATE}", "is missing") from gone

    def _check_sizes(self, name: str, state: Mapping[str, Any]) -> None:
        """Also where this node has a copy: another may have none, and all must decide alike."""
        folder = f"{FOLDER}/{name}"
        sizes = {entry.name: entry.size for entry in self._storage.entries(folder, deep=True)}
        for file, recorded in state["files"].items():
            size = sizes.get(f"{folder}/{file}", 0)
            if size != recorded["bytes"]:
                detail = f"has {size:,} bytes instead of {recorded['bytes']:,}"
                raise Damaged.file(f"{self.url}/{folder}/{file}", detail)

    def _fetch(self, name: str, copy: Path, where: str) -> None:
        aside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=copy.parent))
        try:
            for entry in self._storage.entries(f"{FOLDER}/{name}", deep=True):
                local = aside / entry.name.removeprefix(f"{FOLDER}/{name}/")
                local.parent.mkdir(parents=True, exist_ok=True)
                self._storage.download(entry.name, local)
            read(aside, where).verify()
            os.rename(aside, copy)
        except FileNotFoundError as gone:
            raise Damaged.file(where, f"lost a file meanwhile ({gone})") from gone
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def open_store(url: str) -> Store:
    """The checkpoints of a run's folder or ``s3://`` URL.

    Raises:
        ValueError: a scheme that nothing here reads.
    """
    if not url.startswith("s3://"):
        return LocalStore(local_path(url))
    storage = open_storage(url)
    assert isinstance(storage, S3Storage)
    return S3Store(storage, NodeCache())


def newest(store: Store) -> str:
    """The name of the latest checkpoint, "" where there is none yet."""
    names, pointed = store.names(), store.pointer(LATEST)
    return pointed if pointed in names else (names or [""])[-1]


def newest_good(store: Store) -> tuple[Checkpoint | None, dict[str, Damaged]]:
    """The newest checkpoint whose files are what was saved, and what is wrong with newer ones."""
    first, damaged = newest(store), dict[str, Damaged]()
    for name in (first, *(n for n in reversed(store.names()) if n != first)):
        try:
            if name:
                found = store.open(name)
                found.verify()
                return found, damaged
        except Damaged as broken:
            damaged[name] = broken
    return None, damaged


def set_aside(store: Store, damaged: Mapping[str, Damaged], found: Checkpoint) -> list[str]:
    """Keep damaged checkpoints out of the way; a line for each."""
    lines = []
    for name, broken in damaged.items():
        what = str(broken).split(": it is damaged")[0]
        lines.append(
            f"warning: {what}: set aside as {store.set_aside(name)}; falling back to {found.where}"
        )
    return lines


def rotate(store: Store, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, the best, and those that readers pinned."""
    names, best = store.names(), store.pointer(BEST)
    old = [name for name in names[: max(0, len(names) - max(keep, 1))] if name != best]
    held = pinned(store.files, names) if old else set()
    for name in old:
        if name not in held:
            store.remove(name)


def _forget_oldest(copies: Path) -> None:
    found = [path for path in copies.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in sorted(found, key=lambda p: p.stat().st_mtime_ns)[:-_COPIES]:
        shutil.rmtree(path, ignore_errors=True)
