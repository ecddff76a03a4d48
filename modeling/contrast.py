"""Contrastive features of all samples of a step, on all ranks and in all micro-batches.

In-batch negatives (section 3.2) are drawn from all of them, so that their number does not shrink
with the memory. Only a sample's own features carry a gradient (`gather` explains why that is
enough); of the others the values suffice. `losses_in_turn` therefore makes two passes over the
micro-batches: the first collects features, the second runs each micro-batch forward and backward by
itself, with the gradient of the one big batch.

Shapes: see `modeling`; B one micro-batch, S a rank's samples of the step, W = S × ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling import gather


@dataclass(frozen=True, kw_only=True)
class Features:
    """One rank's samples as other samples are compared with them.

    Nothing has a gradient, except the tokens where the image encoder trains.

    Attributes:
        tokens_SPD: Output of the image encoder.
        ids_SL: Text tokens.
        mask_SL: 1 for tokens, 0 for padding.
        image_ids_S: Ids of the images, equal for samples that show the same one; None: all are
            different.
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
    """The features of all ranks, and those of this rank. Making it is a collective call."""

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
        """Number S of this rank's samples."""
        return self.own.ids_SL.shape[0]

    def same(self, start: int, batch: int) -> Tensor:
        """Pairs of samples that show the same image: bool (B, W), True for a sample and itself.

        Args:
            start: Index of the first of B samples among this rank's.
            batch: Number B.
        """
        return self._image_ids_S[start : start + batch, None] == self._image_ids_W[None]

    def text_targets(self, batch: int) -> Tensor:
        """Mean number of tokens to generate in `batch` of this rank's samples."""
        return self.own.mask_SL[:, 1:].sum() * batch / self.size


def join(parts: Sequence[Features]) -> Features:
    """Joins the features of a rank's micro-batches, in order; their texts are padded alike."""
    ids = [part.image_ids_S for part in parts if part.image_ids_S is not None]
    return Features(
        tokens_SPD=torch.cat([part.tokens_SPD for part in parts]),
        ids_SL=torch.cat([part.ids_SL for part in parts]),
        mask_SL=torch.cat([part.mask_SL for part in parts]),
        image_ids_S=torch.cat(ids) if ids else None,
        image_SQE=torch.cat([part.image_SQE for part in parts]),
        text_SE=torch.cat([part.text_SE for part in parts]),
    )


def pad_texts(texts: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Pads a rank's texts to the longest text of all ranks, so that they can be gathered.

    Args:
        texts: Ids and mask (B, L) of each micro-batch.

    Raises:
        ValueError: Ranks hold batches of different size.
    """
    batch = sum(ids.shape[0] for ids, _ in texts)
    longest = max(ids.shape[1] for ids, _ in texts)
    length = gather.common_text_length(batch, longest, texts[0][0].device)
    return [tuple(F.pad(t, (0, length - t.shape[1])) for t in pair) for pair in texts]  # type: ignore[misc]


@dataclass(frozen=True)
class Pairs:
    """A micro-batch of image-text pairs.

    Attributes:
        images: Function that returns the module's image input, called when it is needed: tokens of
            a frozen encoder, or pixels.
        ids_BL: Text tokens.
        mask_BL: 1 for tokens, 0 for padding.
        image_ids_B: Ids of the images (see `Stage1.losses`).
        draws_B2: Numbers that choose the hard negatives (see `Stage1.losses`).
        seed: Function that seeds torch's generators: dropout must be the same in both passes.
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
    """Stage 1's losses of each micro-batch of a step. Collective.

    The mean of the losses is that of the one big batch, and so is the mean of their gradients. The
    caller runs a micro-batch's backward pass before it asks for the next. The first of the two
    passes costs ITC's forward pass once more; the frozen encoder's is kept.

    Args:
        module: `Stage1`, or `WithEncoder` around it, in whatever engine.
        micros: This rank's micro-batches, of one size, as many as on every other rank.
        frozen: Whether `images` returns tokens of a frozen encoder. Where the encoder trains, its
            gradient from the negatives of other micro-batches is left out.
    """
    texts = pad_texts([(micro.ids_BL, micro.mask_BL) for micro in micros])
    if len(micros) == 1:
        (micro,), (text,) = micros, texts
        seen = micro.images()
        micro.seed()
        yield module(seen, *text, micro.image_ids_B, micro.draws_B2)
        return
    features = []
    for micro, text in zip(micros, texts, strict=True):
        seen = micro.images()
        micro.seed()
        features.append(module(seen, *text, micro.image_ids_B, compute="features"))
    world, start = World(join(features)), 0
    del features, seen
    for micro, text in zip(micros, texts, strict=True):
        end = start + micro.ids_BL.shape[0]
        seen = world.own.tokens_SPD[start:end] if frozen else micro.images()
        micro.seed()
        yield module(seen, *text, micro.image_ids_B, micro.draws_B2, world=world, start=start)
        start = end
