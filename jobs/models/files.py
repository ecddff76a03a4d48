"""Files of models: found in local folders, in the clone or on the hub, and read."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.ranks.dist import this_process
from jobs.models.missing_parts import check_model, is_hub_id
from jobs.models.tensors import first_line, open_folder, open_tensors
from modeling.precision import DTYPES, chosen, multiplies_bf16

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ("*.json", "*.txt", "*.model")
SAFETENSORS, PICKLES = "*.safetensors", "pytorch_model*.bin"


def dtype_of(name: str) -> torch.dtype:
    """The number format of a name; ``auto`` is the one for this process's device."""
    return DTYPES[chosen(name, multiplies_bf16(this_process().device))]


def local_path(name: str) -> Path | None:
    """A model's folder or file, relative to the clone or to the working directory; None where
    there is none.
    """
    return next((path for path in (ROOT / name, Path(name)) if path.exists()), None)


def local_folder(name: str) -> Path | None:
    """A model's folder, relative to the clone or to the working directory; None where there is
    none.
    """
    return next((path for path in (ROOT / name, Path(name)) if path.is_dir()), None)


def find_folder(what: str, name: str, weights: bool = True, fetch: bool = True) -> Path:
    """The local folder of a model, fetched from the hub where ``name`` is a hub id.

    Args:
        what: the model's part in the job (``encoder``, ``captioner``), for messages.
        name: a folder, relative to the clone or to the working directory, or a hub id.
        weights: True: the folder must hold a whole model, and safetensors are fetched, or torch's
            ``.bin`` files where the hub has no others (OPT); those are read with
            ``weights_only=True`` like all others. False: configuration and tokenizer are enough.
        fetch: False: a hub id is looked up in the hub's cache on this machine alone, so that the
            many processes of a job do not ask the hub.

    Raises:
        ValueError: There is no such folder, it lacks a part, or the model cannot be fetched.
    """
    folder = local_folder(name)
    if folder is not None:
        if weights:
            check_model(what, folder)
        return folder
    if not fetch:
        return _cached_folder(what, name)
    if not is_hub_id(name):
        raise ValueError(f"{what} {name!r}: no such folder, and it is no hub id (owner/name)")
    from huggingface_hub import snapshot_download

    with readable(what, name):
        if not weights:
            return Path(snapshot_download(name, allow_patterns=list(CONFIGS)))
        folder = Path(snapshot_download(name, allow_patterns=[*CONFIGS, SAFETENSORS]))
        if not any(folder.glob(SAFETENSORS)):
            folder = Path(snapshot_download(name, allow_patterns=[*CONFIGS, PICKLES]))
    return folder


def _cached_folder(what: str, name: str) -> Path:
    """The folder of a hub id in the hub's cache on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    remedy = f"give a Hugging Face folder, or fetch it once with: hf download {name}"
    if name.startswith("modeling/zoo/"):
        remedy = "train it with: python jobs/zoo.py"
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError) as missing:
        raise ValueError(f"{what} {name!r}: no model there (no config.json); {remedy}") from missing


def read_config(folder: Path) -> dict[str, Any]:
    """A Hugging Face folder's ``config.json``.

    Raises:
        ValueError: There is none, or it is damaged.
    """
    path = folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as broken:
        raise ValueError(
            f"{folder} has no config.json that can be read ({broken}); give a Hugging Face folder"
        ) from broken


def read_state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face folder's safetensors files.

    Raises:
        ValueError: There is no such file, or it is damaged.
    """
    return {name: tensor.read() for name, tensor in open_folder(folder).items()}


def read_pth(what: str, name: str) -> dict[str, Tensor]:
    """A plain state dict from a ``.pth`` file, memory-mapped; nothing in it is executed.

    Raises:
        ValueError: There is no such file, it is damaged, or it holds more than tensors.
    """
    path = local_path(name)
    if path is None:
        raise ValueError(f"{what} {name!r}: no such file")
    state = open_tensors(what, path)
    plain = isinstance(state, Mapping) and all(isinstance(t, Tensor) for t in state.values())
    if not plain:
        raise ValueError(
            f"{what} {name!r} is no plain state dict; save the tower's tensors by name, alone"
        )
    return dict(state)


@contextmanager
def readable(what: str, name: str) -> Iterator[None]:
    """Turn a library's error about a model that cannot be loaded into one line that names it."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError) as broken:
        raise ValueError(
            f"{what} {name!r} cannot be loaded ({first_line(broken)}); give a local Hugging Face "
            "folder, or a hub id that can be reached"
        ) from broken
