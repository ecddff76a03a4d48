"""The numbers of scheduled evaluations for TensorBoard: an event file a checkpoint."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.storage.base import Storage
from evaluation.results import numbers

FOLDER = "tensorboard"


def write_events(storage: Storage, name: str, results: Mapping[str, Any]) -> None:
    """Write the numbers of a ``results.json`` at its step, unless they are there.

    Args:
        name: name of the evaluation, with which its file ends.
    """
    from torch.utils.tensorboard import SummaryWriter

    if any(entry.name.endswith(f".{name}") for entry in storage.entries(FOLDER)):
        return
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder, filename_suffix=f".{name}") as writer:
            for task, scores in results.items():
                if isinstance(scores, dict) and "made_with" in scores:
                    for metric, value in numbers(scores):
                        writer.add_scalar(f"{task}/{metric}", value, int(results["step"]))
        for path in Path(folder).iterdir():
            storage.replace(f"{FOLDER}/{path.name}", path.read_bytes())
