"""Preparation of an image encoder's pixels: normalisation, and the square cut for evaluation.

An encoder is right only on pixels prepared as in its own training. ``PixelConfig`` describes this;
it is part of the recipe and of every checkpoint, and ``jobs.models.encoder_settings`` fills it from
the model's own files.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from pipeline.images import MAX_PIXELS, resize_square

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_THIN = 16
"""Longest side over shortest that is resized whole; of a longer image the centre is taken first."""


@dataclass(frozen=True)
class PixelConfig:
    """Preparation of an encoder's images; fields left open are read from the model's own files.

    Attributes:
        mean: three channel means of pixels in [0, 1]; empty takes the model's own.
        std: three channel standard deviations, likewise.
        interpolation: filter of every resize, in training too; ``auto`` takes the model's own.
        geometry: ``squash`` resizes the whole image to a square, ``crop`` resizes its short side
            and keeps the centre, ``pad`` puts it into a square of the mean colour first; evaluation
            and prediction only, unless ``transform.whole`` is ``own``. ``auto`` takes ``squash``
            for CLIP, EVA-CLIP and BLIP-2, as the reference does, and the model's own for the
            others.
        resize_to: side in pixels (``crop``: short side) after the resize, from which the centre of
            the encoder's size is cut; 0 takes the encoder's size.
        resize_by: implementation of the resize, for pixels equal to the model's own library:
            ``torch`` on bytes (Hugging Face), ``float`` on fp32 (Hugging Face's DINOv3),
            ``pillow`` (timm). They differ by one or two levels of 255 in a few pixels.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: Literal["auto", "bicubic", "bilinear"] = "auto"
    geometry: Literal["auto", "squash", "crop", "pad"] = "auto"
    resize_to: int = 0
    resize_by: Literal["auto", "torch", "float", "pillow"] = "auto"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (0, 3):
                raise ValueError(
                    f"encoder.pixels.{name} = {values}: give three numbers (red, green, blue)"
                )
        if any(value <= 0 for value in self.std):
            raise ValueError(f"encoder.pixels.std = {self.std}: give three positive numbers")
        if self.resize_to < 0:
            raise ValueError(f"encoder.pixels.resize_to = {self.resize_to}: give 0 or more pixels")

    @property
    def settled(self) -> bool:
        """Whether nothing is left to be read from the model's files."""
        named = (self.interpolation, self.geometry, self.resize_by)
        return bool(self.mean and self.std) and "auto" not in named


CLIP_PIXELS = PixelConfig(CLIP_MEAN, CLIP_STD, "bicubic", "squash", 0, "torch")
"""The paper's encoders, in the reference's preparation: CLIP's normalisation, no crop."""


def normalise(images: Tensor, pixels: PixelConfig = CLIP_PIXELS) -> Tensor:
    """An encoder's input, on the images' device.

    Args:
        images: values in 0 to 255, any number type, shape (..., 3, H, W).
        pixels: settled; its mean and deviation are used.

    Returns:
        float32 (..., 3, H, W).
    """
    mean, scale = _constants(images.device, pixels.mean, pixels.std)
    return (images.to(torch.float32) - mean) * scale


@functools.cache
def _constants(
    device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Mean and one over deviation, in 0 to 255; copied once, since a copy waits for the device."""
    mean_3, deviation_3 = 255 * torch.tensor(mean), 255 * torch.tensor(std)
    return mean_3[:, None, None].to(device), (1 / deviation_3)[:, None, None].to(device)


def fit_square(image: Tensor, size: int, pixels: PixelConfig = CLIP_PIXELS) -> Tensor:
    """The square of an image that an encoder is shown outside training.

    Args:
        image: uint8 3HW.
        size: side of the square in pixels.
        pixels: settled; its geometry and resize are used.

    Returns:
        3 x size x size in 0 to 255: uint8, or float32 where the resize is on floats.

    Raises:
        ValueError: ``resize_to`` is smaller than ``size``.
    """
    side, crop = pixels.resize_to or size, pixels.geometry == "crop"
    if pixels.geometry == "pad":
        image = _padded(image, side, pixels)
    if side < size:
        raise ValueError(
            f"encoder.pixels.resize_to = {side} is below encoder.image_size = {size}: "
            f"give 0 or at least {size}"
        )
    if side == size and pixels.resize_by == "torch" and pixels.interpolation == "bicubic":
        return resize_square(image, size, crop)
    target = (side, side)
    if crop:
        image = _without_ends(image)
        _, height, width = image.shape
        short = min(height, width)
        target = (side * height // short, side * width // short)
    resized = _resize(image, target, pixels)
    # Half a pixel goes down in Hugging Face's crop, to the even number in timm's.
    rounded = round if pixels.resize_by == "pillow" else int
    top, left = (rounded((length - size) / 2) for length in target)
    return resized[:, top : top + size, left : left + size].contiguous()


def _resize(image: Tensor, target: tuple[int, int], pixels: PixelConfig) -> Tensor:
    """A 3HW image with another height and width, by the implementation asked for."""
    if image.shape[1:] == target:
        return image
    mode = vision.InterpolationMode(pixels.interpolation)
    if pixels.resize_by != "pillow":
        floats = pixels.resize_by == "float"  # on [0, 1], as in Hugging Face's, for equal rounding
        plain = image * (1 / 255) if floats else image
        resized = vision.resize(plain, list(target), interpolation=mode, antialias=True)
        return resized * 255 if floats else resized
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    whole = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    small = whole.resize((target[1], target[0]), filters[pixels.interpolation])
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def _padded(image: Tensor, side: int, pixels: PixelConfig) -> Tensor:
    """An image in the centre of the smallest square around it, of the mean colour (LLaVA-1.5).

    An odd pixel of the margin is at the right or at the bottom. Where the square would be larger
    than any image that is decoded, the image is resized first.
    """
    _, height, width = image.shape
    longest = max(height, width)
    if height == width:
        return image
    if longest**2 > MAX_PIXELS:
        target = (max(1, round(side * height / longest)), max(1, round(side * width / longest)))
        image, longest = _resize(image, target, pixels).to(torch.uint8), side
    colour = torch.tensor([int(255 * mean) for mean in pixels.mean], dtype=torch.uint8)
    # In memory as an image that was decoded, which torch resizes faster.
    square = torch.empty((longest, longest, 3), dtype=torch.uint8).permute(2, 0, 1)
    square[:] = colour[:, None, None]
    _, height, width = image.shape
    top, left = (longest - height) // 2, (longest - width) // 2
    square[:, top : top + height, left : left + width] = image
    return square


def _without_ends(image: Tensor) -> Tensor:
    """The centre of an image that is far longer than wide, so that a crop costs no more memory
    than of any other image; all else is cut away after the resize in any case.
    """
    longest = _THIN * min(image.shape[1:])
    for dim in (1, 2):
        length = image.shape[dim]
        if length > longest:
            image = image.narrow(dim, (length - longest) // 2, longest)
    return image
