"""Checkpoints of trainable state, on disk or on S3.

``files`` holds the files of one checkpoint, ``store`` where a run keeps its checkpoints, ``writer``
how they are saved beside the training, ``load`` how they are found and loaded.
"""

from cluster.checkpoint.files import (
    OPTIMIZER,
    RECIPE,
    STATE,
    TRAINABLE,
    Checkpoint,
    Damaged,
    fill,
    read,
)
from cluster.checkpoint.load import find, load_weights, restore, resume
from cluster.checkpoint.store import (
    BEST,
    FOLDER,
    LATEST,
    Store,
    newest_good,
    open_store,
    set_aside,
)
from cluster.checkpoint.writer import NotSaved, Writer

__all__ = [
    "BEST",
    "FOLDER",
    "LATEST",
    "OPTIMIZER",
    "RECIPE",
    "STATE",
    "TRAINABLE",
    "Checkpoint",
    "Damaged",
    "NotSaved",
    "Store",
    "Writer",
    "fill",
    "find",
    "load_weights",
    "newest_good",
    "open_store",
    "read",
    "restore",
    "resume",
    "set_aside",
]
