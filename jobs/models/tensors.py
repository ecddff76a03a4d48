"""Weights in files: read one tensor at a time, written in shards, and published only when complete.

`Lazy` stands for a tensor that is still in its file: its shape and dtype are known. A model of any
size can so be renamed, checked and rewritten in the memory of one shard.
"""

import contextlib
import json
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from cluster.storage.local import sync_path
from modeling.precision import DTYPES

SHARD_BYTES = 1 << 30
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Suffixes of the files beside the weights: configurations, tokenizers, notes.
SMALL = frozenset({".json", ".txt", ".model", ".jinja", ".md"})
FLOATS = {str(dtype).removeprefix("torch."): dtype for dtype in reversed(DTYPES.values())}
"""Number formats of weights by torch's names."""
_SAFE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_SAFE |= {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}


@dataclass(frozen=True)
class Lazy:
    """A tensor that is still in its file.

    Attributes:
        shape: its shape.
        dtype: its number format.
        read: reads it into memory.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @staticmethod
    def of(tensor: Tensor) -> "Lazy":
        """The same for a tensor that is in memory already, or mapped into it."""
        return Lazy(tuple(tensor.shape), tensor.dtype, lambda: tensor)


Tensors = dict[str, Lazy]


def shapes(tensors: Mapping[str, Lazy | Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


# ------------------------------------------------------------------------------------ reading


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: There is no such file, or it holds no JSON object; `what` names the file's
            part in the message.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as broken:
        raise ValueError(f"{what} {path} cannot be read ({broken})") from broken
    if not isinstance(content, dict):
        raise ValueError(f"{what} {path} is no JSON object")
    return content


def open_folder(folder: Path) -> Tensors:
    """The weights of a Hugging Face folder, in one safetensors file or in shards, not read yet.

    Raises:
        ValueError: There are no safetensors, a shard is missing or damaged, or the index names a
            weight that is in no shard.
    """
    if (folder / INDEX).is_file():
        places = read_json(folder / INDEX, "index").get("weight_map", {})
        files = sorted(set(places.values()))
        if any(Path(name).name != name for name in files):
            raise ValueError(f"index {folder / INDEX} names a file outside its folder")
    elif (folder / WEIGHTS).is_file():
        places, files = {}, [WEIGHTS]
    else:
        pickles = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
        raise ValueError(
            f"{folder} has no {WEIGHTS}"
            + (f", only {pickles}, which can hold code" if pickles else "")
            + "; give a folder whose weights are saved as safetensors"
        )
    tensors: Tensors = {}
    for name in files:
        tensors |= open_safetensors(folder / name)
    lost = sorted(places.keys() - tensors.keys())
    if lost:
        raise ValueError(f"index {folder / INDEX} names {lost[0]}, which is in none of its files")
    return tensors


def open_safetensors(path: Path) -> Tensors:
    """The tensors of one safetensors file, not read yet.

    Raises:
        ValueError: The file is missing, cut short or damaged, or holds a tensor of a type that is
            not supported.
    """
    try:
        with safe_open(path, framework="pt") as file:
            result = {}
            for name in file.keys():  # noqa: SIM118  it is no mapping
                part = file.get_slice(name)
                result[name] = _lazy(path, name, tuple(part.get_shape()), part.get_dtype())
            return result
    except (OSError, SafetensorError) as broken:
        raise ValueError(
            f"weights {path} cannot be read ({broken}): the file is missing, damaged or cut short; "
            "fetch it again"
        ) from broken


def _lazy(path: Path, name: str, shape: tuple[int, ...], dtype: str) -> Lazy:
    if dtype not in _SAFE:
        raise ValueError(f"weights {path}: {name} is of type {dtype}, which is not supported")
    return Lazy(shape, _SAFE[dtype], partial(_read, path, name))


def _read(path: Path, name: str) -> Tensor:
    # Opened anew for each tensor: with the last tensor goes the map, and the pages it touched.
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def first_line(error: Exception) -> str:
    """The first line of an error's message; explanations follow it in many libraries."""
    said = str(error).strip()
    return said.splitlines()[0] if said else repr(error)


def open_tensors(what: str, path: Path) -> Any:
    """The content of a file that torch saved, memory-mapped; nothing in it is executed.

    Args:
        what: the file's part in the job, for messages.

    Raises:
        ValueError: There is no such file, it is damaged, or it holds objects other than tensors
            and plain values.
    """
    if not path.is_file():
        raise ValueError(f"{what} {str(path)!r}: no such file")
    try:
        zipped = zipfile.is_zipfile(path)  # the older format cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as refused:
        raise ValueError(
            f"{what} {str(path)!r} holds objects other than tensors and plain values; nothing of "
            "it was executed. Ask for one saved by torch.save of tensors only"
        ) from refused
    except (RuntimeError, EOFError, OSError, KeyError) as broken:
        raise ValueError(
            f"{what} {str(path)!r} cannot be read ({first_line(broken)}): it is damaged or cut "
            "short; fetch it again"
        ) from broken


def open_pth(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a LAVIS ``.pth``, memory-mapped, and the names of its other entries.

    Raises:
        ValueError: There is no such file, it is no LAVIS checkpoint, or it holds objects other
            than tensors and plain values.
    """
    content = open_tensors("LAVIS checkpoint", path)
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(
            f'LAVIS checkpoint {path} is no {{"model": {{name: tensor}}}}: '
            "give a file that LAVIS saved"
        )
    return state, [str(name) for name in content if name != "model"]


# ------------------------------------------------------------------------------------ writing


def write_folder(folder: Path, tensors: Mapping[str, Lazy], what: str) -> None:
    """Write weights into a Hugging Face folder: one safetensors file, or shards of at most 1 GiB.

    Args:
        what: the label of the progress bar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups = _groups(tensors)
    total = sum(tensor.nbytes for tensor in tensors.values())
    places: dict[str, str] = {}
    bar = tqdm(
        total=total, unit="B", unit_scale=True, desc=what, disable=total < SHARD_BYTES, leave=False
    )
    with bar:
        for number, names in enumerate(groups, 1):
            file = WEIGHTS
            if len(groups) > 1:
                file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            shard = {name: tensors[name].read().contiguous() for name in names}
            save_file(_unshared(shard), folder / file, metadata={"format": "pt"})
            del shard
            sync_path(folder / file)
            places |= dict.fromkeys(names, file)
            bar.update(sum(tensors[name].nbytes for name in names))
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(folder / INDEX, index)


def _groups(tensors: Mapping[str, Lazy]) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    return groups


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with a copy of each that shares its storage with an earlier one: the format
    has no sharing.
    """
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return result


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON; it is on the disk, and not in a cache, when this returns."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    sync_path(path)


def copy_small(source: Path, target: Path, skip: tuple[str, ...] = ()) -> None:
    """Copy a folder's small files (configurations, tokenizers) and those of its subfolders.

    Args:
        skip: names of files and subfolders that are left out.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*")):
        place = path.relative_to(source)
        hidden = any(part.startswith(".") for part in place.parts)
        index = path.name.endswith(".index.json")
        if hidden or index or place.parts[0] in skip or path.suffix not in SMALL:
            continue
        if path.is_file():
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / place)


def check_new(out: Path) -> None:
    """Check that a result can be written to ``out``.

    Raises:
        ValueError: ``out`` exists already, or the folder above it is missing.
    """
    if out.exists() or out.is_symlink():
        raise ValueError(f"OUT {out} exists already; remove it, or give another name")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"OUT {out}: there is no folder {out.absolute().parent}; make it first")


@contextlib.contextmanager
def published(out: Path) -> Iterator[Path]:
    """A temporary path for a file or folder, which is renamed to `out` when the block ends without
    an error.

    Raises:
        ValueError: `out` exists already.
    """
    check_new(out)
    aside = Path(
        tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.absolute().parent)
    )
    try:
        yield aside / out.name
        check_new(out)
        os.rename(aside / out.name, out)
        sync_path(out.absolute().parent)
    finally:
        shutil.rmtree(aside)
