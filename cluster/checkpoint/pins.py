"""Pins: readers of a run's checkpoints keep the trainer from removing them meanwhile.

    OUT/checkpoints/pins/step_00000200--KEY.beat     the time at which the reader was last alive

A pin without a sign of life for a day no longer counts. A checkpoint is first made invisible and
then looked for among the pins once more (``store.rotate``), so that a reader that has pinned a
checkpoint and then finds it in its place can rely on it.
"""

import logging
from pathlib import Path

from cluster import claims
from cluster.storage.base import Storage

PINS = "checkpoints/pins"
_FORGOTTEN_SECONDS = 24 * 3600.0


def pin_name(step: str, key: str) -> str:
    """The name of a pin, for ``cluster.claims.alive``.

    Args:
        step: name of the checkpoint.
        key: name of the reader's work.
    """
    return f"{PINS}/{step}--{key}"


def pin(storage: Storage, step: str, key: str) -> str:
    """Pin a checkpoint; returns the pin's name. Look for the checkpoint afterwards."""
    name = pin_name(step, key)
    claims.mark(storage, name)
    return name


def unpin(storage: Storage, name: str) -> None:
    """Remove a pin; it may be gone already."""
    storage.remove(f"{name}.beat")


def pinned(storage: Storage) -> set[str]:
    """The names of the checkpoints that are pinned."""
    found = set()
    for entry in storage.entries(PINS):
        name = entry.name.removesuffix(".beat")
        step = Path(name).name.partition("--")[0]
        if claims.age(storage, name) < _FORGOTTEN_SECONDS:
            found.add(step)
        else:
            logging.getLogger(__name__).warning(
                "the pin %s had no sign of life for a day: it no longer keeps %s", name, step
            )
    return found
