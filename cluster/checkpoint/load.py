"""Checkpoints found behind a path, and loaded into a module or an engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster.checkpoint.files import STATE, Checkpoint, Damaged, read
from cluster.checkpoint.store import (
    BEST,
    FOLDER,
    LATEST,
    NAME,
    Store,
    newest,
    newest_good,
    open_store,
)
from cluster.ranks import zero_state
from cluster.storage.base import as_url


def find(path: str | Path) -> Checkpoint:
    """The checkpoint behind a path or ``s3://`` URL.

    Args:
        path: a step's folder, a run's folder (or its ``checkpoints``) for its latest, or
            ``RUN/checkpoints/best``.

    Raises:
        ValueError: there is none.
    """
    text = as_url(path).rstrip("/")
    if (Path(text) / STATE).is_file():
        return read(Path(text))
    run, which = _split(text)
    store = open_store(run)
    name = newest(store) if which == LATEST else which
    if which == BEST:
        name = store.pointer(BEST)
    if name not in store.names():
        raise ValueError(
            f"checkpoint {path}: no checkpoint there; give the --out folder of a training run, "
            f"or one of its {FOLDER}/step_* folders"
        )
    return store.open(name)


def resume(store: Store) -> tuple[Checkpoint | None, dict[str, Damaged]]:
    """The checkpoint that a run goes on from, verified, and what is wrong with newer ones.

    Raises:
        ValueError: there are checkpoints and none is good.
    """
    found, damaged = newest_good(store)
    if damaged and found is None:
        what = "; ".join(str(broken).split(": it is damaged")[0] for broken in damaged.values())
        raise ValueError(
            f"--out {store.url}: none of its {len(damaged)} checkpoints is good ({what}); restore "
            f"one of them, or remove {store.url}/{FOLDER} to start again from nothing"
        )
    return found, damaged


def restore(engine: Any, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's masters, moments and update count into the engine, bit for bit.

    Raises:
        ValueError: its tensors are not those of the engine's module.
    """
    shapes = {name: _shape(p) for name, p in engine.module.named_parameters()}
    tensors = {zero_state.MASTER: checkpoint.trainable()}
    tensors |= {kind: checkpoint.moments(kind) for kind in zero_state.MOMENTS}
    for kind, values in tensors.items():
        _compare(shapes, values, f"checkpoint {checkpoint.where} ({kind})")
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


def _split(text: str) -> tuple[str, str]:
    """(run, which of its checkpoints) of a path or URL."""
    above, _, name = text.rpartition("/")
    if name == FOLDER:
        return above or ".", LATEST
    inside = above == FOLDER or above.endswith(f"/{FOLDER}")
    if inside and (NAME.match(name) or name in (LATEST, BEST)):
        return above.removesuffix(FOLDER).rstrip("/") or ".", name
    return text, LATEST


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
