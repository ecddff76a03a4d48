"""Decoded images -> squares: random crop and flip to train, squash to evaluate.

Squares to train on stay uint8, a quarter of what floats would be on their way from the processes
that decode and to the device; ``normalise`` makes them what an encoder sees, there.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.images import resize, resize_square

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TransformConfig:
    """Training augmentation; the defaults are the paper's (section 3.4) and the reference's.

    Attributes:
        size: side of the output in pixels.
        scale: range of the crop's share of the area; (1, 1) with ratio (1, 1) squashes the whole.
        ratio: range of the crop's width over height.
        flip: probability of a horizontal flip.
        keep_sides: no flip where the text names left or right.
    """

    size: int = 224
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    keep_sides: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"transform.scale = {self.scale}: give 0 < smallest <= largest <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"transform.ratio = {self.ratio}: give 0 < smallest <= largest")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"transform.flip = {self.flip}: give a probability")


class TrainTransform:
    """uint8 3HW -> uint8 3SS, augmented by a generator and nothing else."""

    def __init__(self, config: TransformConfig) -> None:
        self.config = config
        self._whole = config.scale == (1.0, 1.0) and config.ratio == (1.0, 1.0)

    def __call__(
        self, image: Tensor, generator: torch.Generator, allow_flip: bool = True
    ) -> Tensor:
        """Crop, resize, flip; draws as many numbers with a flip as without."""
        size = self.config.size
        draws = torch.rand(3 + 2, generator=generator, dtype=torch.float64).tolist()
        if self._whole:
            square = resize_square(image, size)
        else:
            top, left, height, width = self._crop(image.shape[1], image.shape[2], draws)
            square = resize(image[:, top : top + height, left : left + width], size, size)
        if allow_flip and draws[4] < self.config.flip:
            square = square.flip(-1)
        return square

    def _crop(self, height: int, width: int, draws: list[float]) -> tuple[int, int, int, int]:
        """A crop whose shape is drawn first and then cut to what the image can hold."""
        low, high = self.config.scale
        area = height * width * (low + (high - low) * draws[0])
        narrow, wide = map(math.log, self.config.ratio)
        ratio = math.exp(narrow + (wide - narrow) * draws[1])
        w = min(width, max(1, round(math.sqrt(area * ratio))))
        h = min(height, max(1, round(math.sqrt(area / ratio))))
        top, left = int(draws[2] * (height - h + 1)), int(draws[3] * (width - w + 1))
        return top, left, h, w


class EvalTransform:
    """uint8 3HW -> float32 3SS: bicubic squash to the square, nothing random."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``generator`` is taken for the sake of the common signature and not used."""
        return normalise(resize_square(image, self.size))


def train_transform(size: int) -> TrainTransform:
    """The paper's training transform for a resolution."""
    return TrainTransform(TransformConfig(size=size))


def eval_transform(size: int) -> EvalTransform:
    """The paper's evaluation transform for a resolution."""
    return EvalTransform(size)


def normalise(images: Tensor) -> Tensor:
    """uint8 ...3HW -> float32 ...3HW with CLIP's mean and standard deviation, on their device."""
    mean, scale = _constants(images.device)
    return (images.to(torch.float32) - mean) * scale


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and one over deviation, in 0 to 255; copied once, since a copy waits for the device."""
    mean, deviation = 255 * torch.tensor(CLIP_MEAN), 255 * torch.tensor(CLIP_STD)
    return mean[:, None, None].to(device), (1 / deviation)[:, None, None].to(device)
