"""Encoded bytes -> RGB tensors: strict about what is decoded, exact about what comes out.

Every image becomes 8-bit RGB, shape 3HW. Transparency is composited over white, 16-bit grey is
scaled (not clipped), CMYK is converted, an animation gives its first frame. EXIF orientation is
not applied, as in the reference implementation. Size is read from the header and refused before
a single pixel is decoded.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

MAX_PIXELS = 89_478_485
"""Largest image decoded by default: Pillow's own bomb limit, about 9,459 x 9,459."""

# Pillow can be asked to open formats that call other programs (EPS) or fetch nothing useful;
# only still-image formats found in web data are tried.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


class ImageError(ValueError):
    """Bytes that do not become an image; ``reason`` is the word counted in the parquet."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the header says: sizes in pixels, nothing decoded yet."""

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
    except (OSError, ValueError, SyntaxError, EOFError) as broken:
        raise ImageError("undecodable_image", str(broken)) from broken
    if opened.width * opened.height > max_pixels:
        size = f"{opened.width} x {opened.height} is over {max_pixels:,} pixels"
        raise ImageError("too_many_pixels", size)
    return opened


def read_header(image: bytes, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Format, size and mode without decoding.

    Raises:
        ImageError: reason ``empty_image``, ``not_an_image``, ``too_many_pixels`` or
            ``undecodable_image``.
    """
    with _open(image, max_pixels) as opened:
        return ImageHeader(opened.format or "", opened.width, opened.height, opened.mode)


def decode(image: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode to a uint8 tensor 3HW, RGB.

    In memory it is HW3, as the decoder leaves it: to bring it into planes costs a fifth of the
    decoding, and torch resizes planes at a third of the speed, to the same pixels.

    Args:
        image: an encoded file (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF).
        max_pixels: larger images are refused from their header, before decoding.

    Raises:
        ImageError: a ``ValueError``; reasons of ``read_header`` and ``truncated_image``,
            ``unsupported_mode``.
    """
    with _open(image, max_pixels) as opened:
        try:
            opened.load()
            rgb = _to_rgb(opened)
        except ImageError:
            raise
        # Pillow's decoders raise this set on hostile bytes, all of them from within load().
        except (OSError, ValueError, SyntaxError, EOFError, IndexError, MemoryError) as broken:
            short = "truncated" in str(broken).lower() or isinstance(broken, EOFError)
            reason = "truncated_image" if short else "undecodable_image"
            raise ImageError(reason, str(broken)) from broken
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return _from_deep_grey(image)
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits by scaling; Pillow's own conversion clips at 255."""
    values = np.asarray(image)
    if image.mode.startswith("F") or values.min() < 0 or values.max() > 65_535:
        raise ImageError("unsupported_mode", f"{image.mode} is not 8- or 16-bit")
    grey = np.rint(values.astype(np.float64) / 257.0).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def resize(image: Tensor, height: int, width: int, mode: str = "bicubic") -> Tensor:
    """Anti-aliased resize (``bicubic`` or ``bilinear``) of a uint8 3HW tensor; in memory as the
    image is.
    """
    # Torch takes HW3 for what it is only with the stride of a batch that such images would have.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return interpolate(batch, size=(height, width), mode=mode, antialias=True)[0]


def resize_square(image: Tensor, size: int, crop: bool = False) -> Tensor:
    """Bicubic, anti-aliased resize of a uint8 3HW tensor to 3 x size x size, uint8 in planes.

    ``crop=False`` squashes both sides (BLIP); ``crop=True`` brings the short side to ``size`` and
    crops the centre (CLIP).
    """
    _, height, width = image.shape
    if (height, width) == (size, size):
        return image.contiguous()
    target = (size, size)
    if crop:
        short = min(height, width)
        target = (max(size, size * height // short), max(size, size * width // short))
    resized = resize(image, *target)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return resized[:, top : top + size, left : left + size].contiguous()
