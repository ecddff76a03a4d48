"""Transforms from decoded images to squares: random crop and flip to train, squash to evaluate.

Squares to train on stay uint8, a quarter of what floats would be on their way from the processes
that decode and to the device; ``pixels.normalise`` makes them what an encoder sees, there.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from pipeline.images import decode, resize, resize_square
from pipeline.pixels import CLIP_MEAN, CLIP_PIXELS, CLIP_STD, PixelConfig, fit_square, normalise

__all__ = ["CLIP_MEAN", "CLIP_STD", "EvalTransform", "TrainTransform", "TransformConfig"]
__all__ += ["eval_transform", "normalise", "train_transform"]


@dataclass(frozen=True)
class TransformConfig:
    """Training augmentation; the defaults are the paper's (section 3.4) and the reference's.

    Attributes:
        size: side of the output in pixels.
        scale: range of the crop's share of the area; (1, 1) with ratio (1, 1) squashes the whole.
        ratio: range of the crop's width over height.
        flip: probability of a horizontal flip.
        keep_sides: no flip where the text names left or right.
        interpolation: filter of the resize; follows ``encoder.pixels.interpolation``.
        whole: geometry of an image that is not cropped at random, with scale and ratio (1, 1):
            ``squash``, or ``own``, the square that the encoder is shown outside training.
        draft: decode a JPEG at a half, a quarter or an eighth where what is cropped of it keeps at
            least ``size`` pixels a side: faster; pixels differ by a little, and the crop is moved
            by up to half a pixel of the smaller image.
    """

    size: int = 224
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    keep_sides: bool = False
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    whole: Literal["squash", "own"] = "squash"
    draft: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"transform.scale = {self.scale}: give 0 < smallest <= largest <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"transform.ratio = {self.ratio}: give 0 < smallest <= largest")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"transform.flip = {self.flip}: give a probability")
        if self.whole == "own" and (self.scale, self.ratio) != ((1.0, 1.0), (1.0, 1.0)):
            raise ValueError(
                "transform.whole = own: give transform.scale 1 1 and transform.ratio 1 1 too"
            )


class TrainTransform:
    """uint8 3HW -> uint8 3SS, augmented by a generator and nothing else.

    Args:
        pixels: the encoder's own preparation, settled; read where ``config.whole`` is ``own``.
    """

    def __init__(self, config: TransformConfig, pixels: PixelConfig = CLIP_PIXELS) -> None:
        self.config, self.pixels = config, pixels
        self._whole = config.scale == (1.0, 1.0) and config.ratio == (1.0, 1.0)

    def __call__(
        self, image: Tensor, generator: torch.Generator, allow_flip: bool = True
    ) -> Tensor:
        """Crop, resize, flip; draws as many numbers with a flip as without."""
        return self._square(image, _draws(generator), allow_flip)

    def of_file(self, image: bytes, generator: torch.Generator, allow_flip: bool = True) -> Tensor:
        """The square of an encoded image: decoded, and then as ``__call__`` makes it.

        Raises:
            ImageError: see ``pipeline.images.decode``.
        """
        draws = _draws(generator)
        reduce = partial(self._reduction, draws) if self.config.draft else None
        return self._square(decode(image, reduce=reduce), draws, allow_flip)

    def _reduction(self, draws: list[float], height: int, width: int) -> int:
        """The largest divisor of a JPEG's sides that leaves the crop as large as its square."""
        if not self._whole:
            _, _, height, width = self._crop(height, width, draws)
        return next((by for by in (8, 4, 2) if min(height, width) // by >= self.config.size), 1)

    def _square(self, image: Tensor, draws: list[float], allow_flip: bool) -> Tensor:
        size, mode = self.config.size, self.config.interpolation
        if self.config.whole == "own":
            square = fit_square(image, size, self.pixels)
        elif self._whole and mode == "bicubic":
            square = resize_square(image, size)
        elif self._whole:
            square = resize(image, size, size, mode)
        else:
            top, left, height, width = self._crop(image.shape[1], image.shape[2], draws)
            square = resize(image[:, top : top + height, left : left + width], size, size, mode)
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


def _draws(generator: torch.Generator) -> list[float]:
    return torch.rand(3 + 2, generator=generator, dtype=torch.float64).tolist()


class EvalTransform:
    """uint8 3HW -> float32 3SS: an encoder's own square, normalised, nothing random."""

    def __init__(self, size: int, pixels: PixelConfig = CLIP_PIXELS) -> None:
        self.size, self.pixels = size, pixels

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``generator`` is taken for the sake of the common signature and not used."""
        return normalise(fit_square(image, self.size, self.pixels), self.pixels)


def train_transform(size: int) -> TrainTransform:
    """The paper's training transform for a resolution."""
    return TrainTransform(TransformConfig(size=size))


def eval_transform(size: int, pixels: PixelConfig = CLIP_PIXELS) -> EvalTransform:
    """The evaluation transform for a resolution; by default the paper's encoders'."""
    return EvalTransform(size, pixels)
