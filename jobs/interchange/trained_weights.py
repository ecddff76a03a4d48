"""Trained weights that another run starts from: what ``--init`` reads, and nothing else of a file.

    found = trained_weights("runs/stage1", "stage1", heads=12)
    found.weights["qformer.query_tokens"]

Frozen models beside the weights are neither read nor checked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from jobs.interchange.huggingface import is_huggingface, read_trained
from jobs.interchange.lavis import trainable_of
from jobs.models.missing_parts import find_checkpoint
from jobs.models.tensors import open_pth
from modeling.blip2 import Stage1Config

Kind = Literal["stage1", "stage2"]


@dataclass(frozen=True)
class TrainedWeights:
    """Trained weights, and where they come from.

    Attributes:
        where: file or folder that was read.
        weights: tensors by our parameter names.
        recipe: resolved recipe of the run that made them, as JSON has it; empty where another
            project made them.
    """

    where: Path
    weights: dict[str, Tensor]
    recipe: Mapping[str, Any] = field(default_factory=dict)


def trained_weights(path: str, kind: Kind, heads: int) -> TrainedWeights:
    """Read the trained weights of a checkpoint.

    Args:
        path: a checkpoint or run of ours (a folder or an ``s3://`` URL), a ``.pth`` file of LAVIS,
            or a Hugging Face folder.
        kind: stage that the weights must be of.
        heads: attention heads of the Q-Former that takes the weights; their shapes do not show
            the number, and a LAVIS file does not say it.

    Raises:
        ValueError: No checkpoint is there, it is damaged, it is of the other stage, or its
            Q-Former has another number of heads.
    """
    place = Path(path)
    if is_huggingface(place):
        model, weights = read_trained(place)
    elif place.suffix in (".pth", ".pt"):
        state, _ = open_pth(place)
        model, weights = trainable_of(state, {"heads": heads}, f"LAVIS checkpoint {place}")
    else:
        return _of_our_own(path, kind)
    found = "stage1" if isinstance(model, Stage1Config) else "stage2"
    if found != kind:
        raise ValueError(
            f"--init {path}: it is a checkpoint of {_words(found)}; give one of {_words(kind)}"
        )
    if model.qformer.heads != heads:
        raise ValueError(
            f"--init {path}: its Q-Former has {model.qformer.heads} heads, the recipe's {heads}"
        )
    return TrainedWeights(place, weights)


def _of_our_own(path: str, kind: Kind) -> TrainedWeights:
    found = find_checkpoint(path)
    if found.recipe.get("kind") != kind:
        raise ValueError(
            f"--init {path}: the checkpoint's kind is {found.recipe.get('kind')!r}; "
            f"give one of {_words(kind)}"
        )
    found.verify()
    return TrainedWeights(found.folder, found.trainable(), found.recipe)


def _words(kind: str) -> str:
    return kind.replace("stage", "stage ")
