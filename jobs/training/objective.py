"""What the training loop is given by a job: the module that trains, and its losses."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pipeline.loading.loader import Batch

Losses = Mapping[str, Tensor]
"""``loss``, which is trained on, and its parts, as fp32 scalars."""


@dataclass(frozen=True)
class Micro:
    """One micro-batch of a step.

    Attributes:
        batch: its samples.
        seed: seeds torch's generators for what is drawn in it (dropout).
    """

    batch: Batch
    seed: Callable[[], None]


@dataclass(frozen=True)
class Objective:
    """What differs between the training jobs.

    Attributes:
        module: all that trains, and nothing frozen.
        losses: (engine, a rank's micro-batches of a step) -> the losses of each of them, when its
            turn comes. Their mean is the loss of the joined batch.
        tokenise: texts -> token tensors of a batch, where the module reads text.
    """

    module: nn.Module
    losses: Callable[[Any, Sequence[Micro]], Iterator[Losses]]
    tokenise: Callable[[list[str]], dict[str, Tensor]] | None = None
