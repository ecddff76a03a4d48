"""Checkpoints of trainable state, on disk or on S3; import everything from here.

``files`` has the files of one checkpoint, ``store`` the checkpoints of one run, ``writer`` saves
them beside the training, ``load`` finds them and puts them into a module or an engine.
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
