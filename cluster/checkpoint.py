"""Checkpoints of trainable state: whole tensors, no pickle, independent of the world size.

    OUT/checkpoints/step_00000200/trainable.safetensors   fp32 masters under the module's keys
                                  optimizer.safetensors   exp_avg/KEY and exp_avg_sq/KEY
                                  recipe.json             the resolved recipe
                                  state.json              step, seed, data, versions, file digests
    OUT/checkpoints/latest                                name of the newest complete one

A folder is written aside under a name that never counts, synced, read back, renamed, and only
then named by ``latest``, itself replaced atomically. A kill at any moment leaves the last good one.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cluster import zero_state
from cluster.dist import Place, all_reduce
from cluster.storage import sync_path

FOLDER, LATEST = "checkpoints", "latest"
TRAINABLE, OPTIMIZER = "trainable.safetensors", "optimizer.safetensors"
RECIPE, STATE = "recipe.json", "state.json"
_NAME = re.compile(r"^step_\d{8}$")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk: its resolved recipe and its state, as JSON gives them."""

    folder: Path
    recipe: dict[str, Any]
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates made so far; the next step to run has this number."""
        return int(self.state["step"])

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
            ValueError: a file is missing, cut short or changed; names it and the remedy.
        """
        for name, recorded in self.state["files"].items():
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else 0
            if size != recorded["bytes"]:
                raise _damaged(path, f"has {size:,} bytes instead of {recorded['bytes']:,}")
            if _sha256(path) != recorded["sha256"]:
                raise _damaged(path, "has another sha256 than when it was saved")

    def _tensors(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.folder / name)
        except (OSError, SafetensorError) as broken:
            raise _damaged(self.folder / name, f"cannot be read ({broken})") from broken


def save(
    out: Path,
    engine: Any,
    here: Place,
    *,
    recipe: Mapping[str, Any],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write the engine's trainable state as of ``state["step"]`` and make it the latest.

    Collective. Every rank returns once the checkpoint is published, or raises if it could not be.

    Args:
        keep: how many of the newest checkpoints stay.

    Raises:
        OSError: rank 0 could not write (full disk); earlier checkpoints are intact.
    """
    trainable = _gather(engine, here, (zero_state.MASTER,))
    optimizer = _gather(engine, here, zero_state.MOMENTS)
    root = out / FOLDER
    final = root / f"step_{state['step']:08d}"
    failure: Exception | None = None
    if here.rank == 0:
        try:
            updates = {**state, "updates": zero_state.read_count(engine)}
            _publish(final, {TRAINABLE: trainable, OPTIMIZER: optimizer}, dict(recipe), updates)
            _rotate(root, final.name, keep)
        except (OSError, SafetensorError) as error:
            failure = error
    if all_reduce([failure is not None], "max")[0]:
        raise OSError(f"checkpoint {final} could not be written: {failure or 'see rank 0'}")
    return final


def restore(engine: Any, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's masters, moments and update count into the engine, bit for bit.

    Raises:
        ValueError: its tensors are not those of the engine's module.
    """
    shapes = {name: _shape(p) for name, p in engine.module.named_parameters()}
    tensors = {zero_state.MASTER: checkpoint.trainable()}
    tensors |= {kind: checkpoint.moments(kind) for kind in zero_state.MOMENTS}
    for kind, values in tensors.items():
        _compare(shapes, values, f"checkpoint {checkpoint.folder} ({kind})")
        zero_state.write(engine, kind, values)
    zero_state.write_count(engine, int(checkpoint.state["updates"]))


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy a checkpoint's weights into a module outside any engine: all keys, and no others.

    Raises:
        ValueError: a key too many, too few or of another shape; ``where`` names the source.
    """
    parameters = dict(module.named_parameters())
    _compare({name: p.shape for name, p in parameters.items()}, tensors, where)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def latest(out: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run, or None where it has none yet."""
    root = out / FOLDER
    pointer = root / LATEST
    named = root / pointer.read_text().strip() if pointer.is_file() else root
    complete = _complete(root)
    if _NAME.match(named.name) and named.is_dir():
        return read(named)
    return read(complete[-1]) if complete else None


def find(path: Path) -> Checkpoint:
    """The checkpoint behind a path: a step's folder, or a run's folder for its latest.

    Raises:
        ValueError: there is none.
    """
    if (path / STATE).is_file():
        return read(path)
    run = path.parent if path.name == FOLDER else path
    found = latest(run)
    if found is None:
        raise ValueError(
            f"checkpoint {path}: no checkpoint there; give the --out folder of a training run, "
            f"or one of its {FOLDER}/step_* folders"
        )
    return found


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint's recipe and state; tensors are read when asked for.

    Raises:
        ValueError: one of the two files is missing or is no JSON.
    """
    parts = []
    for name in (RECIPE, STATE):
        try:
            parts.append(json.loads((folder / name).read_text()))
        except (OSError, json.JSONDecodeError) as broken:
            raise _damaged(folder / name, f"cannot be read ({broken})") from broken
    return Checkpoint(folder, *parts)


def fill(
    folder: Path,
    files: Mapping[str, dict[str, Tensor]],
    recipe: dict[str, Any],
    state: dict[str, Any],
) -> None:
    """Write a checkpoint's files into a folder that nobody reads yet, and wait for the disk.

    Args:
        files: tensors by file name; their sizes and digests are added to ``state``.

    Raises:
        OSError, SafetensorError: A file could not be written.
    """
    state["files"] = {}
    for name, tensors in files.items():
        save_file(tensors, folder / name)
        sync_path(folder / name)
        size = (folder / name).stat().st_size
        state["files"][name] = {"bytes": size, "sha256": _sha256(folder / name)}
    for name, record in ((RECIPE, recipe), (STATE, state)):
        (folder / name).write_text(json.dumps(record, indent=1) + "\n")
        sync_path(folder / name)
    sync_path(folder)


def _gather(engine: Any, here: Place, kinds: tuple[str, ...]) -> dict[str, Tensor]:
    """Whole tensors on rank 0's CPU; the other ranks only take part."""
    gathered = {}
    for kind in kinds:
        prefix = "" if kind == zero_state.MASTER else f"{kind}/"
        for name, tensor in zero_state.read(engine, kind):
            if here.rank == 0:
                gathered[prefix + name] = tensor.detach().to("cpu", torch.float32, copy=True)
    return gathered


def _publish(
    final: Path,
    files: Mapping[str, dict[str, Tensor]],
    recipe: dict[str, Any],
    state: dict[str, Any],
) -> None:
    root = final.parent
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".step_*"):
        shutil.rmtree(leftover)
    aside = root / f".{final.name}.partial"
    aside.mkdir()
    fill(aside, files, recipe, state)
    if final.exists():  # the same step saved again, after a resume from an earlier one
        os.rename(final, root / f".{final.name}.replaced")
    os.rename(aside, final)
    sync_path(root)
    pointer = root / f".{LATEST}.partial"
    pointer.write_text(final.name + "\n")
    sync_path(pointer)
    os.replace(pointer, root / LATEST)
    sync_path(root)


def _rotate(root: Path, newest: str, keep: int) -> None:
    older = [folder for folder in _complete(root) if folder.name != newest]
    for folder in older[: max(0, len(older) - max(keep, 1) + 1)]:
        aside = folder.with_name(f".{folder.name}.removed")
        os.rename(folder, aside)
        shutil.rmtree(aside)
    for replaced in root.glob(".step_*.replaced"):
        shutil.rmtree(replaced)


def _complete(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(entry for entry in root.iterdir() if _NAME.match(entry.name))


def _compare(shapes: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> None:
    missing = sorted(shapes.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - shapes.keys())
    if missing or unknown:
        detail = f"lacks {missing[:3]}" if missing else f"has {unknown[:3]} in addition"
        raise ValueError(
            f"{where} {detail} ({len(missing)} missing, {len(unknown)} unknown tensors): "
            "it belongs to another recipe; give its own recipe, or another folder"
        )
    for name, shape in shapes.items():
        if tuple(shape) != tuple(tensors[name].shape):
            raise ValueError(
                f"{where}: {name} has shape {tuple(tensors[name].shape)}, the recipe makes "
                f"{tuple(shape)}; give the recipe it was trained with, or another folder"
            )


def _shape(parameter: Any) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _damaged(path: Path, detail: str) -> ValueError:
    return ValueError(
        f"checkpoint file {path} {detail}: it is damaged; remove the folder {path.parent} "
        "and start again to resume from the one before"
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
