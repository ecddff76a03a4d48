"""Decoding of image files to RGB tensors, and their resize.

Every image becomes 8-bit RGB, shape 3HW. Transparency is composited over white, unless nothing of
the picture is opaque: then its colours count as they are stored. 16-bit grey is scaled (not
clipped), CMYK is converted, an animation gives its first frame. EXIF orientation is not applied,
as in the reference implementation. Size is read from the header and refused before a single pixel
is decoded. Whatever a decoder raises leaves this file as an ``ImageError``.
"""

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

MAX_PIXELS = 89_478_485
"""Largest image decoded by default: Pillow's own bomb limit, about 9,459 x 9,459."""

_ELONGATED = 4
"""Aspect over which only the centre that is cropped is computed: the rest would be most of it."""
_LONGEST = 65_535
"""Pixels of the longest side that a JPEG can have; longer ones are first shortened by bands."""
_BAND = 8
_BICUBIC = Image.Resampling.BICUBIC

# Pillow can be asked to open formats that call other programs (EPS) or fetch nothing useful;
# only still-image formats found in web data are tried.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


class ImageError(ValueError):
    """Bytes that do not become an image.

    Attributes:
        reason: word under which CapFilt counts it.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both: so that it can be sent between processes
        self.reason = reason

    def __str__(self) -> str:
        return ": ".join(self.args)


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header of an image file, read without decoding: format, size in pixels, Pillow's mode."""

    format: str
    width: int
    height: int
    mode: str


def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(image: bytes, max_pixels: int) -> Image.Image:
    if not image:
        raise ImageError("empty_image", "the file has zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(image), formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as bomb:
        raise ImageError("too_many_pixels", str(bomb)) from bomb
    except UnidentifiedImageError as unknown:
        raise ImageError("not_an_image", f"starts with {image[:12]!r}") from unknown
    except Exception as broken:  # which ones damaged bytes cause, no decoder documents
        raise _undecodable(broken) from broken
    if opened.width * opened.height > max_pixels:
        size = f"{opened.width} x {opened.height} is over {max_pixels:,} pixels"
        raise ImageError("too_many_pixels", size)
    return opened


def _undecodable(broken: Exception) -> ImageError:
    """The reason that stands for any exception of a decoder."""
    short = isinstance(broken, EOFError) or "truncated" in str(broken).lower()
    reason = "truncated_image" if short else "undecodable_image"
    return ImageError(reason, f"{type(broken).__name__}: {broken}")


def read_header(image: bytes, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Format, size and mode without decoding.

    Raises:
        ImageError: reason ``empty_image``, ``not_an_image``, ``too_many_pixels`` or
            ``undecodable_image``.
    """
    with _open(image, max_pixels) as opened:
        return ImageHeader(opened.format or "", opened.width, opened.height, opened.mode)


def decode(
    image: bytes, max_pixels: int = MAX_PIXELS, reduce: Callable[[int, int], int] | None = None
) -> Tensor:
    """Decode to a uint8 tensor 3HW, RGB.

    In memory it is HW3, as the decoder leaves it: to bring it into planes costs a fifth of the
    decoding, and torch resizes planes at a third of the speed, to the same pixels.

    Args:
        image: an encoded file (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF).
        max_pixels: larger images are refused from their header, before decoding.
        reduce: (height, width) -> 1, 2, 4 or 8, by which a JPEG's sides are divided (rounded up)
            while it is decoded, for a fraction of the work; other formats come in full size.

    Raises:
        ImageError: a ``ValueError``; reasons of ``read_header`` and ``truncated_image``,
            ``unsupported_mode``.
    """
    with _open(image, max_pixels) as opened:
        by = reduce(opened.height, opened.width) if reduce is not None else 1
        if by > 1:
            opened.draft(None, (max(1, opened.width // by), max(1, opened.height // by)))
        return pixels(opened)


def pixels(image: Image.Image) -> Tensor:
    """The pixels of an image that Pillow opened, as ``decode`` gives them: uint8 3HW, RGB.

    Raises:
        ImageError: reason ``truncated_image``, ``undecodable_image`` or ``unsupported_mode``.
    """
    try:
        rgb = np.array(_to_rgb(image))
    except ImageError:
        raise
    except Exception as broken:  # AVIF's decoder raises RuntimeError, TIFF's TypeError, ...
        raise _undecodable(broken) from broken
    return torch.from_numpy(rgb).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    tiles = getattr(image, "tile", ())
    deep = image.format == "PNG" and any(str(tile.args).endswith("16B") for tile in tiles)
    image.load()
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        return _from_deep_grey(image, key)
    if image.mode in {"I", "F"}:
        return _from_unscaled(image)
    if deep and isinstance(key, tuple):
        # Pillow keeps the upper eight bits of 16-bit colours, but all of the transparent one's.
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if key is not None or image.mode in {"RGBA", "LA", "PA", "RGBa", "La"}:
        return _over_white(image)
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """Transparency over white. Where all of it is transparent, alpha was left blank by whoever
    wrote the file (many BMPs), and says nothing about the colours.
    """
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if rgba.getchannel("A").getextrema() == (0, 0):
        return rgba.convert("RGB")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _from_deep_grey(image: Image.Image, transparent: int | None) -> Image.Image:
    """12- or 16-bit grey to 8 bits by scaling; Pillow's own conversion clips at 255."""
    values = np.asarray(image)
    bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # TIFF's BitsPerSample
    grey = np.rint(values * (255 / (2**bits - 1))).clip(max=255).astype(np.uint8)
    clear = values == (-1 if transparent is None else transparent)
    if not clear.all():
        grey[clear] = 255
    return Image.fromarray(grey).convert("RGB")


def _from_unscaled(image: Image.Image) -> Image.Image:
    """32-bit integers, if they are 8-bit grey; for others no file says what white is."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" or low < 0 or high > 255:
        raise ImageError("unsupported_mode", f"{image.mode} with values from {low} to {high}")
    return image.convert("RGB")


def resize(image: Tensor, height: int, width: int, mode: str = "bicubic") -> Tensor:
    """Anti-aliased resize (``bicubic`` or ``bilinear``) of a uint8 3HW tensor; in memory as the
    image is.
    """
    rows = _shorten(image, height, width).permute(1, 2, 0)
    if 1 in rows.shape[:2]:
        # Of a side of one pixel any stride is valid, and torch reads far outside with some.
        rows = rows.clone(memory_format=torch.contiguous_format)
    # Torch takes HW3 for what it is only with the stride of a batch that such images would have.
    batch = rows[None].permute(0, 3, 1, 2)
    return interpolate(batch, size=(height, width), mode=mode, antialias=True)[0]


def resize_square(image: Tensor, size: int, crop: bool = False) -> Tensor:
    """Bicubic, anti-aliased resize of a uint8 3HW tensor to 3 x size x size, uint8 in planes.

    ``crop=False`` squashes both sides (BLIP); ``crop=True`` brings the short side to ``size`` and
    crops the centre (CLIP). Of an elongated image the centre alone is computed.
    """
    _, height, width = image.shape
    if (height, width) == (size, size):
        return image.contiguous()
    if not crop:
        return resize(image, size, size).contiguous()
    short, long = sorted((height, width))
    target = (max(size, size * height // short), max(size, size * width // short))
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    if long > _ELONGATED * short:
        return _resize_part(image, target, (top, left), size)
    resized = resize(image, *target)
    return resized[:, top : top + size, left : left + size].contiguous()


def _resize_part(
    image: Tensor, target: tuple[int, int], corner: tuple[int, int], size: int
) -> Tensor:
    """The square at ``corner`` (top, left) of the image resized to ``target`` (height, width),
    computed from the part of the image that it shows.
    """
    top, bottom, upper, lower = _needed(image.shape[1], target[0], corner[0], corner[0] + size)
    left, right, first, last = _needed(image.shape[2], target[1], corner[1], corner[1] + size)
    planes = []
    for plane in image[:, top:bottom, left:right].to(torch.float32).numpy():
        # In torch's order, and between the two directions cut to 0..255 as there, but not rounded:
        # so no pixel differs from the whole resize by more than one level.
        across = Image.fromarray(np.ascontiguousarray(plane)).resize(
            (size, bottom - top), _BICUBIC, box=(first, 0, last, bottom - top)
        )
        kept = Image.fromarray(np.asarray(across).clip(0, 255))
        planes.append(np.asarray(kept.resize((size, size), _BICUBIC, box=(0, upper, size, lower))))
    return torch.from_numpy(np.stack(planes)).round().clamp(0, 255).to(torch.uint8)


def _shorten(image: Tensor, height: int, width: int) -> Tensor:
    """An image with a side that no JPEG could have, its longer one brought to the wanted length.

    The weights of such a side are many (32 bytes a pixel), so they are made for a few rows at a
    time; and of a tall image the columns must not be multiplied before.
    """
    _, rows, columns = image.shape
    if max(rows, columns) <= _LONGEST or (rows, columns) == (height, width):
        return image
    if columns > rows:
        return _shorten(image.transpose(1, 2), width, height).transpose(1, 2)
    bands = []
    for start in range(0, height, _BAND):
        stop = min(start + _BAND, height)
        top, bottom, upper, lower = _needed(rows, height, start, stop)
        part = Image.fromarray(np.ascontiguousarray(image[:, top:bottom].permute(1, 2, 0).numpy()))
        band = part.resize((columns, stop - start), _BICUBIC, box=(0, upper, columns, lower))
        bands.append(np.array(band))
    return torch.from_numpy(np.concatenate(bands)).permute(2, 0, 1)


def _needed(length: int, target: int, start: int, stop: int) -> tuple[int, int, float, float]:
    """What [start, stop) of a side resized from ``length`` to ``target`` pixels is made of.

    Returns:
        The first pixel and the one after the last, and the place of [start, stop) among them.
    """
    scale = length / target
    reach = math.ceil(2 * max(scale, 1.0)) + 1  # the cubic kernel reaches two pixels far
    first = max(0, math.floor(start * scale) - reach)
    last = min(length, math.ceil(stop * scale) + reach)
    return first, last, start * scale - first, min(stop * scale, length) - first
