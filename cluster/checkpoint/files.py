"""The files of one checkpoint: whole tensors, no pickle, independent of the world size.

trainable.safetensors   fp32 masters under the module's keys
optimizer.safetensors   exp_avg/KEY and exp_avg_sq/KEY
recipe.json             the resolved recipe
state.json              step, metric, seed, data, versions, and size and digest of the others
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.storage.local import sync_path

TRAINABLE, OPTIMIZER = "trainable.safetensors", "optimizer.safetensors"
RECIPE, STATE = "recipe.json", "state.json"


class Damaged(ValueError):
    """A checkpoint's file is missing, cut short, changed or unreadable."""

    @classmethod
    def file(cls, where: str, detail: str) -> "Damaged":
        """What is wrong with the file at ``where``."""
        return cls(
            f"checkpoint file {where} {detail}: it is damaged; give another step's folder (a run "
            "that is started again falls back to its newest good checkpoint)"
        )


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its resolved recipe and its state, as JSON gives them.

    Attributes:
        folder: folder of its files on this machine.
        recipe: the resolved recipe.
        state: step, metric, seed, data, versions, and size and digest of each file.
        url: URL that the files came from, for messages; "" where that is ``folder``.
    """

    folder: Path
    recipe: dict[str, Any]
    state: dict[str, Any]
    url: str = ""

    @property
    def step(self) -> int:
        """The number of steps made so far, which is the number of the next step to run."""
        return int(self.state["step"])

    @property
    def where(self) -> str:
        """Its address, as a person gives it."""
        return self.url or str(self.folder)

    def trainable(self) -> dict[str, Tensor]:
        """fp32 weights by the module's parameter names."""
        return self._tensors(TRAINABLE)

    def moments(self, kind: str) -> dict[str, Tensor]:
        """``exp_avg`` or ``exp_avg_sq`` by the module's parameter names."""
        prefix = f"{kind}/"
        tensors = self._tensors(OPTIMIZER)
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    def verify(self) -> None:
        """Compare sizes and sha256 of the tensor files with what was recorded at saving.

        Raises:
            Damaged: a file is missing, cut short or changed; names it and the remedy.
        """
        for name, recorded in self.state["files"].items():
            if name == RECIPE:  # read already; a person may edit it, where a frozen model has moved
                continue
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else 0
            if size != recorded["bytes"]:
                detail = f"has {size:,} bytes instead of {recorded['bytes']:,}"
                if not path.is_file():
                    detail += ": it is missing"
                raise Damaged.file(f"{self.where}/{name}", detail)
            if _sha256(path) != recorded["sha256"]:
                detail = "has another sha256 than when it was saved"
                raise Damaged.file(f"{self.where}/{name}", detail)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.folder / name)
        except (OSError, SafetensorError) as broken:
            raise Damaged.file(f"{self.where}/{name}", f"cannot be read ({broken})") from broken


def read(folder: Path, url: str = "") -> Checkpoint:
    """Read a checkpoint's recipe and state; tensors are read when asked for.

    Raises:
        Damaged: one of the two files is missing or is no JSON.
    """
    parts: list[dict[str, Any]] = []
    for name in (RECIPE, STATE):
        try:
            parts.append(as_record((folder / name).read_bytes(), f"{url or folder}/{name}"))
        except OSError as broken:
            detail = f"cannot be read ({broken.strerror})"
            raise Damaged.file(f"{url or folder}/{name}", detail) from broken
    recipe, state = parts
    return Checkpoint(folder, recipe, state, url)


def as_record(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in a checkpoint's file.

    Raises:
        Damaged: it is none.
    """
    try:
        record = json.loads(data)
    except ValueError as broken:  # no JSON, or no UTF-8
        raise Damaged.file(where, f"cannot be read ({broken})") from broken
    if not isinstance(record, dict) or (where.endswith(STATE) and "files" not in record):
        raise Damaged.file(where, "is not the record of a checkpoint")
    return record


def fill(
    folder: Path,
    files: Mapping[str, dict[str, Tensor]],
    recipe: dict[str, Any],
    state: dict[str, Any],
) -> None:
    """Write a checkpoint's files into a folder that nobody reads yet, wait for the disk, read back.

    Args:
        files: tensors by file name; their sizes and digests are added to ``state``, which is
            written last.

    Raises:
        OSError, SafetensorError: a file could not be written, or does not hold what was written.
    """
    state["files"] = {}
    for name, tensors in files.items():
        save_file(tensors, folder / name)
        _forget(folder / name)
        _compare(folder / name, tensors)
        state["files"][name] = _described(folder / name)
    _write_json(folder / RECIPE, recipe)
    state["files"][RECIPE] = _described(folder / RECIPE)
    _write_json(folder / STATE, state)
    sync_path(folder)


def _compare(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with safe_open(path, "pt") as file:
        for name, expected in tensors.items():
            if not torch.equal(_bits(file.get_tensor(name)), _bits(expected)):
                raise OSError(f"{path}: {name} reads back other than it was written")


def _bits(tensor: Tensor) -> Tensor:
    """Its bytes: of two NaN, only those with the same bits are equal."""
    return tensor.contiguous().flatten().view(torch.uint8)


def _forget(path: Path) -> None:
    """Put a file on the disk and out of memory, so that what is read next is what the disk has."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1) + "\n")
    sync_path(path)


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def walk(folder: Path) -> Iterator[str]:
    """The files below a folder, relative to it, in order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()
