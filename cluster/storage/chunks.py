"""Results in chunks: a file for each chunk, written once by anybody, beside the plan of them all.

    URL/FOLDER/plan.json           what the results depend on
    URL/FOLDER/part-00000.jsonl    a header, then a row an item
    URL/FOLDER/part-00001.npz      the same with arrays

A chunk is done when its file is there. Any number of workers, on any number of machines that share
the folder, write their chunks side by side, and a job that was ended anywhere goes on.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.storage.base import Conflict, Storage
from cluster.storage.open import open_storage

PLAN = "plan.json"
_HEADER = "header"
_SUFFIXES = (".jsonl", ".npz")
Rows = list[dict[str, Any]]
Arrays = dict[str, np.ndarray]


class OtherPlan(ValueError):
    """The results that are there were made otherwise; the message names the difference."""


@dataclass(frozen=True)
class ChunkStore:
    """The chunks of one kind of results; the object is small and is pickled to workers.

    Attributes:
        url: folder, or its ``s3://`` URL.
        folder: folder of the chunks in it.
    """

    url: str
    folder: str

    @property
    def storage(self) -> Storage:
        return open_storage(self.url)

    def plan(self) -> dict[str, Any] | None:
        """What the results depend on; None: there are none yet."""
        name = f"{self.folder}/{PLAN}"
        return json.loads(self.storage.read(name)) if self.storage.exists(name) else None

    def open_plan(self, plan: Mapping[str, Any]) -> None:
        """Write the plan, or compare with the one that is there.

        Raises:
            OtherPlan: the results that are there depend on something else; names it.
        """
        text = json.dumps(plan, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        try:
            self.storage.publish(f"{self.folder}/{PLAN}", text.encode())
        except Conflict as taken:
            there = json.loads(taken.existing)
            keys = [key for key in plan.keys() | there.keys() if plan.get(key) != there.get(key)]
            if not keys:
                return
            raise OtherPlan(
                "; ".join(
                    f"{key}: {_short(there.get(key))} there, {_short(plan.get(key))} now"
                    for key in sorted(keys)
                )
            ) from taken

    def remove(self) -> None:
        """Remove all chunks, the plan last."""
        names = [entry.name for entry in self.storage.entries(self.folder)]
        for name in sorted(names, key=lambda name: name.endswith(PLAN)):
            self.storage.remove(name)

    def names(self) -> set[str]:
        """The names of the chunks that have a file."""
        found = self.storage.entries(self.folder)
        names = (entry.name.removeprefix(f"{self.folder}/") for entry in found)
        return {name.rpartition(".")[0] for name in names if name.endswith(_SUFFIXES)}

    def has(self, name: str) -> bool:
        """Whether a chunk has a file by now."""
        return any(self.storage.exists(f"{self.folder}/{name}{suffix}") for suffix in _SUFFIXES)

    def write(self, name: str, header: Mapping[str, Any], content: Rows | Arrays) -> bool:
        """Publish a chunk: rows as JSONL, arrays as npz.

        Returns:
            True if it was published here, False if another worker had published it.

        Raises:
            Conflict: another worker published other content.
        """
        rows = isinstance(content, list)
        data = _jsonl(header, content) if isinstance(content, list) else _npz(header, content)
        suffix = ".jsonl" if rows else ".npz"
        return self.storage.publish(f"{self.folder}/{name}{suffix}", data)

    def file(self, name: str) -> str:
        """The name of a chunk's file, relative to ``url``."""
        stem = f"{self.folder}/{name}"
        return f"{stem}.jsonl" if self.storage.exists(f"{stem}.jsonl") else f"{stem}.npz"

    def read(self, name: str) -> tuple[dict[str, Any], Rows | Arrays]:
        """Header and content of a chunk.

        Raises:
            ValueError: the file is damaged; the message names it.
        """
        file = self.file(name)
        data = self.storage.read(file)
        try:
            return _read_jsonl(data) if file.endswith(".jsonl") else _read_npz(data)
        except (ValueError, KeyError, OSError) as broken:
            raise ValueError(
                f"{self.url}/{file} is damaged ({broken}); remove it, and start the job again"
            ) from broken


def _jsonl(header: Mapping[str, Any], rows: Rows) -> bytes:
    lines = [{_HEADER: header}, *rows]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def _read_jsonl(data: bytes) -> tuple[dict[str, Any], Rows]:
    first, *rows = [json.loads(line) for line in data.decode().split("\n") if line]
    if len(rows) != first[_HEADER]["items"]:
        raise ValueError(f"{len(rows)} rows of {first[_HEADER]['items']}")
    return first[_HEADER], rows


def _npz(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as an uncompressed npz, whose bytes depend on nothing but them."""
    told = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **{_HEADER: told}, **arrays)
    return out.getvalue()


def _read_npz(data: bytes) -> tuple[dict[str, Any], Arrays]:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(arrays.pop(_HEADER).tobytes()), arrays


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
