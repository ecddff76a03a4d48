"""What stage 1 compares a sample with: the features of all samples of a step, on all ranks and in
all micro-batches, so that in-batch negatives do not shrink with the memory (section 3.2).

Legend: B micro-batch, S a rank's samples of the step, W the world's (S × ranks, rank-major), P
    image tokens, Q queries, L text tokens, D width, E embedding.

Only a sample's own features carry a gradient (`gather` explains why that is enough). Of the others
no more than values are needed, and these a first pass over the micro-batches can bring: each
micro-batch then runs forward and backward by itself, with the gradient of the one big batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling import gather


@dataclass(frozen=True)
class Features:
    """What the objectives compare, of one rank's samples; nothing has a gradient but, where the
    encoder trains, the tokens.

    Attributes:
        tokens_SPD: Of the image encoder.
        ids_SL: Text tokens.
        mask_SL: 1 for tokens, 0 for padding.
        image_ids_S: Equal for samples that show the same image; None: all are different.
        image_SQE: Features of the queries.
        text_SE: Features of the texts.
    """

    tokens_SPD: Tensor
    ids_SL: Tensor
    mask_SL: Tensor
    image_ids_S: Tensor | None
    image_SQE: Tensor
    text_SE: Tensor


class World:
    """The features of all ranks (a collective call to make), and those of this rank."""

    def __init__(self, own: Features) -> None:
        self.own = own
        self.image_WQE, self.text_WE = gather.gather(own.image_SQE), gather.gather(own.text_SE)
        self.ids_WL, self.mask_WL = gather.gather(own.ids_SL), gather.gather(own.mask_SL)
        image_ids_S = own.image_ids_S
        if image_ids_S is None:
            image_ids_S = torch.arange(self.size, device=own.ids_SL.device)
            image_ids_S = image_ids_S + gather.rank() * self.size
        self._image_ids_S, self._image_ids_W = image_ids_S, gather.gather(image_ids_S)

    @property
    def size(self) -> int:
        """S."""
        return self.own.ids_SL.shape[0]

    def same(self, start: int, batch: int) -> Tensor:
        """True (B, W) where a sample from `start` on and one of the world show the same image; a
        sample and itself always.
        """
        return self._image_ids_S[start : start + batch, None] == self._image_ids_W[None]

    def text_targets(self, batch: int) -> Tensor:
        """Text tokens to generate in B of this rank's samples, on average."""
        return self.own.mask_SL[:, 1:].sum() * batch / self.size


def join(parts: Sequence[Features]) -> Features:
    """The features of a rank's micro-batches, in order; their texts are padded alike."""
    ids = [part.image_ids_S for part in parts if part.image_ids_S is not None]
    return Features(
        torch.cat([part.tokens_SPD for part in parts]),
        torch.cat([part.ids_SL for part in parts]),
        torch.cat([part.mask_SL for part in parts]),
        torch.cat(ids) if ids else None,
        torch.cat([part.image_SQE for part in parts]),
        torch.cat([part.text_SE for part in parts]),
    )


def pad_texts(texts: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Pads a rank's texts, (ids, mask) a micro-batch, to the longest of all ranks, so that they
    can be gathered; what stands in padding is never read.

    Raises:
        ValueError: Ranks hold batches of different size.
    """
    batch = sum(ids.shape[0] for ids, _ in texts)
    longest = max(ids.shape[1] for ids, _ in texts)
    length = gather.common_text_length(batch, longest, texts[0][0].device)
    return [tuple(F.pad(t, (0, length - t.shape[1])) for t in pair) for pair in texts]  # type: ignore[misc]


@dataclass(frozen=True)
class Pairs:
    """A micro-batch as `losses_in_turn` takes it.

    Attributes:
        images: Gives what the module is shown of the images, when it is its turn.
        ids_BL: Text tokens.
        mask_BL: 1 for tokens, 0 for padding.
        image_ids_B: As for `Stage1.forward`.
        draws_B2: As for `Stage1.forward`.
        seed: Seeds torch's generators: dropout must be the same in both passes.
    """

    images: Callable[[], Tensor]
    ids_BL: Tensor
    mask_BL: Tensor
    image_ids_B: Tensor | None
    draws_B2: Tensor | None
    seed: Callable[[], None]


def losses_in_turn(
    module: Callable[..., Any], micros: Sequence[Pairs], frozen: bool
) -> Iterator[dict[str, Tensor]]:
    """Stage 1's losses of each micro-batch of a step; their mean is the one big batch's, and so is
    the mean of their gradients. Collective.

    The caller runs a micro-batch's backward pass before it asks for the next. The first of
    the two passes costs ITC's forward once more, but not the frozen encoder's: its tokens are kept.

    Args:
        module: `Stage1`, or `WithEncoder` around it, in whatever engine.
        micros: This rank's, of one size, as many as on every other rank.
        frozen: Whether `images` gives tokens of a frozen encoder. Where the encoder trains, its
            gradient from the negatives of other micro-batches is left out.
    """
    texts = pad_texts([(micro.ids_BL, micro.mask_BL) for micro in micros])
    rest = [(m.image_ids_B, m.draws_B2) for m in micros]
    if len(micros) == 1:
        seen = micros[0].images()
        micros[0].seed()
        yield module(seen, *texts[0], *rest[0])
        return
    features = []
    for micro, text, more in zip(micros, texts, rest, strict=True):
        seen = micro.images()
        micro.seed()
        features.append(module(seen, *text, *more, only_features=True))
    world, start = World(join(features)), 0
    del features, seen
    for micro, text, more in zip(micros, texts, rest, strict=True):
        end = start + micro.ids_BL.shape[0]
        seen = world.own.tokens_SPD[start:end] if frozen else micro.images()
        micro.seed()
        yield module(seen, *text, *more, world=world, start=start)
        start = end
