"""A batch, and its way from the process that makes it to the one that trains on it.

Squares, as the resized and cropped images are called here, cross in anonymous memory that is shared
by fork and reused. A segment of its own for each batch, torch's way, would cost a page fault every
4 kB and a socket a tensor, and count against ``/dev/shm``, of which containers have little. All the
rest is small and goes through the pipe.
"""

import math
import mmap
import weakref
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.pixels import CLIP_PIXELS, PixelConfig, normalise


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's (micro-)batch of B samples.

    Attributes:
        images_B3HW: uint8 images, in memory BHW3 as the decoder leaves them; an encoder takes
            ``pixels_B3HW``.
        texts: one caption (or answer) a sample.
        uids: 32 hex digits a sample.
        image_ids_B: int64 from the image's bytes, equal for samples that show the same image.
        questions: the question that each text answers; "" where the data is no questions
            (``pipeline.loading.questions``).
        draws_B2: float64 random numbers in [0, 1), a function of (seed, uid, visit), for an
            objective to draw with: the same whatever the ranks and the rest of the batch.
        tokens: result of ``tokenise`` on the texts; empty without it.
        replaced: position and fault of each unreadable sample that another one replaces.
    """

    images_B3HW: Tensor
    texts: list[str]
    uids: list[str]
    image_ids_B: Tensor
    questions: list[str]
    draws_B2: Tensor
    tokens: dict[str, Tensor]
    replaced: list[str]

    def pixels_B3HW(
        self, device: torch.device | str = "cpu", pixels: PixelConfig = CLIP_PIXELS
    ) -> Tensor:
        """The images as an encoder takes them: in planes, float32, normalised, on a device."""
        return normalise(self.images_B3HW.to(device, non_blocking=True).contiguous(), pixels)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, for copies that overlap."""
        return replace(
            self,
            images_B3HW=self.images_B3HW.pin_memory(),
            image_ids_B=self.image_ids_B.pin_memory(),
            draws_B2=self.draws_B2.pin_memory(),
            tokens={name: tensor.pin_memory() for name, tensor in self.tokens.items()},
        )


def empty_squares(batch: int, size: int) -> Tensor:
    """Room for the squares of a batch: uint8 B3SS, in memory BSS3."""
    return torch.empty((batch, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)


class Slots:
    """Room for ``count`` batches of squares in memory that processes forked later share.

    The training process takes a slot for each batch it asks for; a worker fills it; the slot is
    free again as soon as nothing refers to the tensor that ``handed`` makes of it.
    """

    def __init__(self, count: int, batch: int, size: int) -> None:
        self._shape = (batch, size, size, 3)
        self._bytes = math.prod(self._shape)
        self._stride = math.ceil(self._bytes / mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, max(1, count) * self._stride)
        self._free = list(range(count))

    def take(self) -> int | None:
        """A free slot: the one freed last, whose pages are there already; None if none is."""
        return self._free.pop() if self._free else None

    def squares(self, slot: int) -> Tensor:
        """A slot as uint8 B3SS, in memory BSS3: for the worker that fills it."""
        return self._tensor(self._array(slot))

    def handed(self, slot: int) -> Tensor:
        """The same for who uses it up; frees the slot in the end."""
        array = self._array(slot)  # lives as long as the tensor's memory is referred to
        weakref.finalize(array, self._free.append, slot).atexit = False
        return self._tensor(array)

    def _array(self, slot: int) -> np.ndarray:
        return np.frombuffer(self._memory, np.uint8, self._bytes, slot * self._stride)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).view(self._shape).permute(0, 3, 1, 2)


class BatchMessage(NamedTuple):
    """A batch on its way between two processes: the fields of ``Batch``, small tensors as arrays.

    Attributes:
        squares: number of the slot that holds the images; or, where none was free, the images.
    """

    squares: int | Tensor
    texts: list[str]
    uids: list[str]
    image_ids: np.ndarray
    questions: list[str]
    draws: np.ndarray
    tokens: dict[str, np.ndarray]
    replaced: list[str]

    def batch(self, slots: Slots) -> Batch:
        """The batch itself."""
        squares = self.squares
        return Batch(
            images_B3HW=squares if isinstance(squares, Tensor) else slots.handed(squares),
            texts=self.texts,
            uids=self.uids,
            image_ids_B=torch.from_numpy(self.image_ids),
            questions=self.questions,
            draws_B2=torch.from_numpy(self.draws),
            tokens={name: torch.from_numpy(array) for name, array in self.tokens.items()},
            replaced=self.replaced,
        )
