"""Benchmark folders on S3: a copy on this node's disk, made once for all its processes."""

import json
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from cluster.storage.base import Entry, Storage, as_url
from cluster.storage.cache import NodeCache
from cluster.storage.open import open_storage

_STREAMS = 16
_INDEX = ".copied.json"
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Home:
    """The benchmarks' folder, as other machines find it; the object is small and is pickled.

    Attributes:
        data: folder, or ``s3://`` URL.
        folders: names of the folders in it that are needed.
        root: folder of the files on the machine that read the items.
    """

    data: Path
    folders: tuple[str, ...]
    root: Path

    def moved(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """The items with their images' paths on this machine."""
        here = local_data(self.data, self.folders)
        if here == self.root:
            return items
        return [self._moved(item, here) for item in items]

    def _moved(self, item: Any, here: Path) -> Any:
        path = getattr(item, "path", None)
        return item if path is None else replace(item, path=here / path.relative_to(self.root))


def local_data(data: Path, folders: Collection[str]) -> Path:
    """The folder of the benchmarks on this machine.

    Args:
        data: folder, or ``s3://`` URL whose files are then copied into the node's cache; those that
            have not changed since they were copied are there already.
        folders: names of the folders in it that are needed.

    Raises:
        FileNotFoundError: there is none of the folders.
        Unreachable: the store does not answer.
    """
    url = as_url(data)
    if not url.startswith("s3://"):
        if not data.is_dir():
            raise FileNotFoundError(f"--data {data}: no such folder")
        return data
    cache, storage = NodeCache(), open_storage(url)
    root = cache.path_for(f"benchmarks of {url}", "")
    with cache.only_one(root):
        root.mkdir(parents=True, exist_ok=True)
        wanted = [entry for name in folders for entry in storage.entries(name, deep=True)]
        if not wanted:
            raise FileNotFoundError(f"--data {url}: there is nothing in {', '.join(folders)}")
        _copy(storage, root, wanted)
    return root


def _copy(storage: Storage, root: Path, wanted: Collection[Entry]) -> None:
    """Bring the files here that are not, side by side; the index says which version each is."""
    index = root / _INDEX
    known = json.loads(index.read_text()) if index.is_file() else {}
    todo = [
        entry
        for entry in wanted
        if known.get(entry.name) != entry.etag or not (root / entry.name).is_file()
    ]
    if not todo:
        return

    def fetch(entry: Entry) -> None:
        path = root / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.part")
        storage.download(entry.name, aside)
        os.replace(aside, path)

    total = sum(entry.size for entry in todo)
    with (
        ThreadPoolExecutor(_STREAMS) as pool,
        tqdm(total=total, desc="copy data", unit="B", unit_scale=True) as bar,
    ):
        for entry, _ in zip(todo, pool.map(fetch, todo), strict=True):
            bar.update(entry.size)
    known |= {entry.name: entry.etag for entry in todo}
    aside = index.with_suffix(".part")
    aside.write_text(json.dumps(known))
    os.replace(aside, index)
