"""The identity of a checkpoint, read from its files without loading its weights."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.checkpoint import Damaged, Store
from jobs.interchange.huggingface import is_huggingface, read_huggingface
from jobs.interchange.llava import formats as llava_formats
from jobs.models.missing_parts import find_checkpoint

_SAMPLE = 1 << 20  # bytes of each end of a file of a Hugging Face folder that its digest reads


@dataclass(frozen=True)
class Identity:
    """A checkpoint as results name it.

    Attributes:
        stage: ``stage1`` or ``stage2``.
        recipe: name of its recipe.
        text: rule for texts of its recipe.
        step: number of updates that were made; 0: a released checkpoint.
        digest: sha256 that changes with any of its weights.
    """

    stage: str
    recipe: str
    text: str
    step: int
    digest: str


def digest_of_checkpoint(store: Store, step: str) -> str:
    """The first 8 digits of a checkpoint's digest; "" where it is gone or damaged."""
    try:
        return _digest(store.state(step))[:8]
    except Damaged:
        return ""


def _digest(state: Mapping[str, Any]) -> str:
    """sha256 that changes with any of a checkpoint's weights."""
    files = {name: file["sha256"] for name, file in state["files"].items()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def identify(checkpoint: Path) -> Identity:
    """The checkpoint behind a path or ``s3://`` URL; its weights are not loaded.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    if is_huggingface(checkpoint):
        bridged = llava_formats.concerns("hf", checkpoint)
        recipe: Any = llava_formats.read("hf", checkpoint).recipe if bridged else None
        recipe = recipe or read_huggingface(checkpoint).recipe
        stage = _stage(recipe.kind)
        return Identity(stage, recipe.name, recipe.text, 0, _folder_digest(checkpoint))
    found = find_checkpoint(checkpoint)
    noted = found.recipe
    if "kind" not in noted or "name" not in noted:
        raise ValueError(f"checkpoint {found.where}: its recipe.json names no kind and name")
    text = str(noted.get("text", "plain"))
    return Identity(_stage(noted["kind"]), noted["name"], text, found.step, _digest(found.state))


def _stage(kind: str) -> str:
    """The stage whose tasks a checkpoint does: LLaVA's does those of stage 2."""
    return "stage1" if kind == "stage1" else "stage2"


def _folder_digest(folder: Path) -> str:
    """Digest over the names, sizes, and both ends of all files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(f"{path.name}\0{size}\0".encode())
                for place in (0, max(0, size - _SAMPLE)):
                    file.seek(place)
                    digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
