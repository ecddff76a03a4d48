"""A model that is given less at once where the device's memory does not suffice."""

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Row = TypeVar("Row")
Made = TypeVar("Made")


class Halving(Generic[Row, Made]):
    """Calls ``model`` on a batch; out of device memory, on its halves, down to single samples.

    The size that went through stays for the life of this object: memory that was short once will be
    short again. Parts are padded, so that the model sees one shape per size.

    What is promised: a caption is drawn with numbers of its own (``modeling.captioning.sampling``)
    and stays the same. The last bits of a score may depend on how many rows the kernels see:
    measured on CPU in fp32, captions are equal at every size, scores to the bit with four images
    and more, and to 1e-7 with fewer. The captioner needs many times the scorer's memory, and each
    has a ``Halving`` of its own; so what is short of memory for captions still scores in full
    batches.

    Args:
        model: (images B3SS, rows) -> one result per row.
        padding: a row for an image that is only there to fill the batch.

    Attributes:
        size: images at once; 0 until memory was short.
    """

    def __init__(self, model: Callable[[Tensor, Sequence[Row]], list[Made]], padding: Row) -> None:
        self.model, self.padding, self.size = model, padding, 0

    def __call__(self, images_B3SS: Tensor, rows: Sequence[Row]) -> list[Made]:
        """The model's results for all rows.

        Raises:
            ValueError: the device cannot hold a single sample.
        """
        made: list[Made] = []
        while len(made) < len(rows):
            size = self.size or len(rows)
            part = slice(len(made), len(made) + size)
            found = self._try(images_B3SS[part], rows[part], size)
            if found is None:
                self._halve(size)
            else:
                made += found
        return made

    def _try(self, images: Tensor, rows: Sequence[Row], size: int) -> list[Made] | None:
        missing = size - len(rows)
        if missing:
            images = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        try:
            return self.model(images, [*rows, *[self.padding] * missing])[: len(rows)]
        except torch.OutOfMemoryError:
            return None  # not tried again in here: the error holds what filled the memory

    def _halve(self, size: int) -> None:
        if size == 1:
            raise ValueError(
                "the device's memory does not hold one image at a time: take a larger device, "
                "--config.dtype bf16 or fewer --config.sampling.captions, or end what else uses it"
            )
        self.size = (size + 1) // 2
        logging.getLogger(__name__).warning("out of memory: %d images at once now", self.size)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # blocks of the old size would be in the way
