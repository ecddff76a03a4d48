"""What the training loop asks of a job: the module that trains, and its losses."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pipeline.loading.loader import Batch

Losses = Mapping[str, Tensor]


@dataclass(frozen=True)
class Micro:
    """One micro-batch of a step, and the seed of what is drawn in it (dropout)."""

    batch: Batch
    seed: Callable[[], None]


@dataclass(frozen=True)
class Task:
    """What differs between the stages.

    Attributes:
        module: all that trains, and nothing frozen.
        losses: (engine, a rank's micro-batches of a step) -> for each of them, when its turn
            comes, ``loss``, which is trained on, and its parts, as fp32 scalars. Their mean is
            the loss of the joined batch.
        tokenise: texts -> token tensors of a batch, where the module reads text.
    """

    module: nn.Module
    losses: Callable[[Any, Sequence[Micro]], Iterator[Losses]]
    tokenise: Callable[[list[str]], dict[str, Tensor]] | None = None
