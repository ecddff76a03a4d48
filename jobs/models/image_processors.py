"""Image preparation of a model as its own files state it, in Hugging Face's form and in timm's."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.pixels import PixelConfig

FILES = ("preprocessor_config.json", "processor_config.json")
_FILTERS: dict[int, Any] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
# Complaint about a field of ``PixelConfig`` that a model's files leave at "auto".
UNSUPPORTED = {
    "interpolation": "the filter that its images are resized with is neither bilinear nor bicubic",
    "geometry": "its images are padded to a square, which is not supported",
}
_BILINEAR = ("DINOv3ViT", "Siglip2")  # classes whose filter is bilinear where the file has none


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """The preparation of images that a model was trained with.

    Attributes:
        size: side in pixels of the square that the model is shown.
        pixels: normalisation and resize; interpolation or geometry is "auto" where the model's own
            is not supported.
        where: file or model that states it, for messages.
    """

    size: int
    pixels: PixelConfig
    where: str = field(default="", compare=False)

    def checked(self) -> "ImageProcessor":
        """This processor, if it is supported.

        Raises:
            ValueError: Its interpolation or geometry is not supported.
        """
        for name in ("interpolation", "geometry"):
            if getattr(self.pixels, name) == "auto":
                raise ValueError(f"{self.where}: {UNSUPPORTED[name]}")
        return self

    def at(self, size: int) -> PixelConfig:
        """The preparation at another size; a cropped margin keeps its share of the image."""
        if not self.pixels.resize_to or size == self.size:
            return self.pixels
        side = max(size, round(self.pixels.resize_to * size / self.size))
        return replace(self.pixels, resize_to=side)


def read_huggingface(folder: Path) -> ImageProcessor | None:
    """The image processor in a Hugging Face folder; None where there is none.

    It is ``preprocessor_config.json``, or a part of ``processor_config.json`` where a newer version
    of transformers saved it.

    Raises:
        ValueError: A file is damaged, or its preparation is not supported.
    """
    for name in FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as broken:
            raise ValueError(f"{path} cannot be read: {broken}") from broken
        config = config.get("image_processor", config)
        if "image_mean" in config or "do_normalize" in config:
            return of_huggingface(config, str(path))
    return None


def of_huggingface(config: Mapping[str, Any], where: str) -> ImageProcessor:
    """An image processor from the fields that Hugging Face saves.

    Args:
        where: the file, for messages.

    Raises:
        ValueError: The preparation is not supported; the message names file, field and value.
    """
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
    crop = bool(config.get("do_center_crop"))
    size, short = _huggingface_size(config, where)
    cut = _side(config.get("crop_size") or size, where) if crop else size
    mean, std = _normalisation(config, where)
    by_default = 2 if kind.startswith(_BILINEAR) else 3
    number = config.get("resample", by_default)
    if size < cut:
        raise ValueError(f"{where}: crop_size {cut} is larger than size {size}")
    geometry: Any = "crop" if crop and short else "squash"
    if kind.startswith("LlavaImage") and config.get("do_pad"):
        geometry = "pad"
    pixels = PixelConfig(
        mean,
        std,
        _FILTERS.get(number, "auto"),
        geometry,
        size if size != cut else 0,
        "float" if kind.startswith("DINOv3ViT") else "torch",
    )
    return ImageProcessor(cut, pixels, where)


def _huggingface_size(config: Mapping[str, Any], where: str) -> tuple[int, bool]:
    """Side in pixels after the resize, and whether only the short side gets that length."""
    size = config.get("size")
    if isinstance(size, Mapping) and "shortest_edge" in size and "longest_edge" not in size:
        return _side(size["shortest_edge"], where), True
    if size is None and "max_num_patches" in config:  # NaFlex: the square of that many patches
        patches = int(config["max_num_patches"])
        return int(config.get("patch_size", 16)) * math.isqrt(patches), False
    if isinstance(size, int):  # older files: the short side where a crop follows
        return size, True
    return _side(size, where), False


def _side(size: Any, where: str) -> int:
    if isinstance(size, Mapping) and size.get("height") == size.get("width"):
        size = size.get("height")
    if isinstance(size, int) and size > 0:
        return size
    raise ValueError(f"{where}: the image processor's size {size!r} is unknown: a square is needed")


def _normalisation(config: Mapping[str, Any], where: str) -> tuple[tuple[float, ...], ...]:
    """Mean and deviation for pixels in [0, 1], whatever range the file scales bytes to."""
    if not config.get("do_rescale", True):
        raise ValueError(
            f"{where}: do_rescale is false, so that the range of its pixels is unknown"
        )
    if not config.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    else:
        mean, std = (_three(config.get(name)) for name in ("image_mean", "image_std"))
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"{where}: image_mean and image_std must be three numbers each")
    scale = 255 * config.get("rescale_factor", 1 / 255)
    if abs(scale - 1) < 1e-6:
        return tuple(mean), tuple(std)
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _three(values: Any) -> list[float]:
    return [float(values)] * 3 if isinstance(values, int | float) else list(values or ())


def of_timm(config: Mapping[str, Any], where: str) -> ImageProcessor:
    """An image processor from timm's ``pretrained_cfg``, read as ``timm.data.create_transform``
    reads it for evaluation.

    Args:
        where: the model, for messages.

    Raises:
        ValueError: The preparation is not supported; the message names model, field and value.
    """
    mean, std = config.get("mean"), config.get("std")
    filters: Any = config.get("interpolation")
    geometry: Any = {"center": "crop", "squash": "squash"}.get(config.get("crop_mode") or "center")
    channels, height, width = config.get("input_size") or (0, 0, 0)
    if not mean or not std or channels != 3 or height != width:
        raise ValueError(
            f"{where}: its pretrained_cfg has mean {mean}, std {std} and input_size "
            f"{config.get('input_size')}; three colours and a square are needed"
        )
    resized = math.floor(height / (config.get("crop_pct") or 0.875))
    if filters not in _FILTERS.values():
        filters = "auto"
    side = 0 if resized == height else resized
    pixels = PixelConfig(tuple(mean), tuple(std), filters, geometry or "auto", side, "pillow")
    return ImageProcessor(height, pixels, where)
