"""The files of an evaluation's answers: one a chunk, written aside and renamed, never changed.

    OUT/answers/TASK_SPLIT/plan.json            what the answers depend on
    OUT/answers/TASK_SPLIT/answers-00000.jsonl  a header, then a row an item
    OUT/answers/TASK_SPLIT/images-00000.npz     the same with arrays (retrieval)

A chunk is answered when its file is there and its header says what it must. Any number of workers,
on any number of machines that share OUT, write their chunks side by side.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from cluster.storage.base import Conflict, Storage
from cluster.storage.open import open_storage
from evaluation.chunks.cut import Chunk
from evaluation.tasks.base import Answers

FOLDER, PLAN = "answers", "plan.json"
_HEADER = "header"
_Kept = TypeVar("_Kept")


@dataclass(frozen=True)
class AnswerStore:
    """The answers of one evaluation; the object is small and is pickled to workers.

    Attributes:
        url: folder of the evaluation, or its ``s3://`` URL.
    """

    url: str

    @property
    def storage(self) -> Storage:
        return open_storage(self.url)

    # ---------------------------------------------------------------------------- plan

    def plan(self, task: str, split: str) -> dict[str, Any] | None:
        """What the answers of a task depend on; None: there are none yet."""
        name = f"{FOLDER}/{task}_{split}/{PLAN}"
        return json.loads(self.storage.read(name)) if self.storage.exists(name) else None

    def open_plan(self, task: str, split: str, plan: Mapping[str, Any]) -> None:
        """Write the plan of a task, or compare with the one that is there.

        Raises:
            ValueError: the answers that are there depend on something else; names it.
        """
        text = json.dumps(plan, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        try:
            self.storage.publish(f"{FOLDER}/{task}_{split}/{PLAN}", text.encode())
        except Conflict as taken:
            there = json.loads(taken.existing)
            keys = [key for key in plan.keys() | there.keys() if plan.get(key) != there.get(key)]
            if not keys:
                return
            differs = "; ".join(
                f"{key}: {_short(there.get(key))} there, {_short(plan.get(key))} now"
                for key in sorted(keys)
            )
            raise ValueError(
                f"--out {self.url} holds answers of task {task} that were made otherwise "
                f"({differs}); give another --out, or --replace to answer again in their place"
            ) from taken

    def remove(self, task: str, split: str) -> None:
        """Remove the answers to a task, the plan last."""
        names = [entry.name for entry in self.storage.entries(f"{FOLDER}/{task}_{split}")]
        for name in sorted(names, key=lambda name: name.endswith(PLAN)):
            self.storage.remove(name)

    # -------------------------------------------------------------------------- chunks

    def answered(self, task: str, split: str) -> set[str]:
        """The names of a task's chunks that have a file."""
        found = self.storage.entries(f"{FOLDER}/{task}_{split}")
        names = (entry.name.removeprefix(f"{FOLDER}/") for entry in found)
        return {name.rpartition(".")[0] for name in names if not name.endswith(PLAN)}

    def is_answered(self, chunk: Chunk) -> bool:
        """Whether a chunk has a file by now."""
        stem = f"{FOLDER}/{chunk.name}"
        return any(self.storage.exists(f"{stem}{suffix}") for suffix in (".jsonl", ".npz"))

    def write(self, chunk: Chunk, answers: Answers) -> bool:
        """Publish the answers of a chunk.

        Returns:
            True if they were published here, False if another worker had published them.

        Raises:
            Conflict: another worker published other answers.
        """
        rows = isinstance(answers, list)
        data = _jsonl(chunk, answers) if isinstance(answers, list) else _npz(chunk, answers)
        return self.storage.publish(f"{FOLDER}/{chunk.name}.{'jsonl' if rows else 'npz'}", data)

    def read(self, chunk: Chunk) -> Answers:
        """The answers of a chunk.

        Raises:
            ValueError: the file is damaged, or holds the answers to other items.
        """
        stem = f"{FOLDER}/{chunk.name}"
        suffix = ".jsonl" if self.storage.exists(f"{stem}.jsonl") else ".npz"
        where = f"{self.url}/{stem}{suffix}"
        data = self.storage.read(f"{stem}{suffix}")
        try:
            header, answers = (_read_jsonl if suffix == ".jsonl" else _read_npz)(data)
        except (ValueError, KeyError, OSError) as broken:
            raise ValueError(
                f"{where} is damaged ({broken}); remove it, and start the evaluation again"
            ) from broken
        if header != _header(chunk):
            raise ValueError(
                f"{where} holds the answers to other items than the data have now; give another "
                "--out, or --replace to answer again"
            )
        return answers

    def sha256(self, chunks: Iterable[Chunk]) -> str:
        """Digest of the files of some chunks, in their order."""
        digest = hashlib.sha256()
        for chunk in chunks:
            stem = f"{FOLDER}/{chunk.name}"
            suffix = ".jsonl" if self.storage.exists(f"{stem}.jsonl") else ".npz"
            digest.update(self.storage.read(f"{stem}{suffix}"))
        return digest.hexdigest()


def _header(chunk: Chunk) -> dict[str, Any]:
    return {"chunk": chunk.name, "items": len(chunk.items), "sha256": chunk.digest}


def _jsonl(chunk: Chunk, rows: list[dict[str, Any]]) -> bytes:
    lines = [{_HEADER: _header(chunk)}, *rows]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def _read_jsonl(data: bytes) -> tuple[dict[str, Any], Answers]:
    first, *rows = [json.loads(line) for line in data.decode().splitlines()]
    if len(rows) != first[_HEADER]["items"]:
        raise ValueError(f"{len(rows)} rows of {first[_HEADER]['items']}")
    return first[_HEADER], rows


def _npz(chunk: Chunk, arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as an uncompressed npz, whose bytes depend on nothing but them."""
    header = np.frombuffer(json.dumps(_header(chunk)).encode(), dtype=np.uint8)
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **{_HEADER: header}, **arrays)
    return out.getvalue()


def _read_npz(data: bytes) -> tuple[dict[str, Any], Answers]:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(arrays.pop(_HEADER).tobytes()), arrays


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
