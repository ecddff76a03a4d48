"""Pins: readers of a run's checkpoints keep the trainer from removing them.

    OUT/checkpoints/pins/step_00000200--KEY.beat     this checkpoint is being read
                         every-100--KEY.beat         those of every 100 steps wait for their reader,
                                                     until OUT/evaluations/KEY/step_…/done.json

Each file holds the time at which its owner was last alive; after a day without a sign of life it no
longer counts. So checkpoints also wait for a reader that was ended and is started again. Of those
that wait the newest ``MOST_WAITING`` are kept.

A checkpoint is first made invisible and then looked for among the pins once more
(``store.rotate``), so that a reader that has pinned one and then finds it in its place can rely on
it.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from cluster import claims
from cluster.storage.base import Storage

PINS, DONE = "checkpoints/pins", "done.json"
MOST_WAITING = 20
_FORGOTTEN_SECONDS = 24 * 3600.0
_WAITING = re.compile(r"every-(\d+)--(.+)")


def reading(step: str, key: str) -> str:
    """The name of a pin on one checkpoint, for ``cluster.claims.alive``.

    Args:
        step: name of the checkpoint.
        key: name of the reader's work.
    """
    return f"{PINS}/{step}--{key}"


def waiting(stride: int, key: str) -> str:
    """The name of a pin on every checkpoint whose step ``stride`` divides, until it is done."""
    return f"{PINS}/every-{stride}--{key}"


def unpin(storage: Storage, name: str) -> None:
    """Remove a pin; it may be gone already."""
    storage.remove(f"{name}.beat")


def pinned(storage: Storage, steps: Sequence[str]) -> set[str]:
    """Those of a run's checkpoints that are pinned.

    Args:
        storage: all files of the run.
        steps: names of the checkpoints, oldest first.
    """
    found: set[str] = set()
    for entry in storage.entries(PINS):
        name = entry.name.removesuffix(".beat")
        if claims.age(storage, name) > _FORGOTTEN_SECONDS:
            logging.getLogger(__name__).warning("the pin %s had no sign of life for a day", name)
            continue
        order = _WAITING.fullmatch(Path(name).name)
        if order:
            found |= _waiting(storage, steps, int(order[1]), order[2])
        else:
            found.add(Path(name).name.partition("--")[0])
    return found & set(steps)


def _waiting(storage: Storage, steps: Sequence[str], stride: int, key: str) -> set[str]:
    folder = f"evaluations/{key}"
    files = (entry.name for entry in storage.entries(folder, deep=True))
    done = {name.split("/")[2].partition("-")[0] for name in files if name.endswith(f"/{DONE}")}
    left = [step for step in steps if int(step[5:]) % stride == 0 and step not in done]
    return set(left[-MOST_WAITING:])
