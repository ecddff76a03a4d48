"""Batches that shrink where the device's memory does not suffice for a whole one."""

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Input = TypeVar("Input")
Output = TypeVar("Output")


class ShrinkingBatches(Generic[Input, Output]):
    """Calls ``model`` on a batch; out of device memory, on its halves, down to single samples.

    The size that went through stays for the life of this object: memory that was short once will be
    short again. Parts are padded, so that the model sees one shape per size.

    Captions stay the same at every size, since each is drawn with random numbers of its own
    (``modeling.captioning.sampling``). The last bits of a score may depend on how many samples the
    kernels see: measured on a CPU in fp32, scores are equal to the bit with four images and more,
    and to 1e-7 with fewer. The captioner needs many times the scorer's memory, and each has an
    object of its own: where memory is short for captions, scores still come from full batches.

    Args:
        model: (images B3SS, B inputs beside them) -> B outputs.
        padding: input beside an image that only fills the batch.

    Attributes:
        size: images at once; 0 until memory was short.
    """

    def __init__(
        self, model: Callable[[Tensor, Sequence[Input]], list[Output]], padding: Input
    ) -> None:
        self.model, self.padding, self.size = model, padding, 0

    def __call__(self, images_B3SS: Tensor, inputs: Sequence[Input]) -> list[Output]:
        """The model's outputs for all inputs.

        Raises:
            ValueError: the device cannot hold a single sample.
        """
        outputs: list[Output] = []
        while len(outputs) < len(inputs):
            size = self.size or len(inputs)
            part = slice(len(outputs), len(outputs) + size)
            found = self._try(images_B3SS[part], inputs[part], size)
            if found is None:
                self._halve(size)
            else:
                outputs += found
        return outputs

    def _try(self, images: Tensor, inputs: Sequence[Input], size: int) -> list[Output] | None:
        missing = size - len(inputs)
        if missing:
            images = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        try:
            return self.model(images, [*inputs, *[self.padding] * missing])[: len(inputs)]
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
