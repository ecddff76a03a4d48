"""The images that a predictor takes: paths, encoded bytes, PIL images or arrays, read into tensors.

A path to a video (``pipeline.video``) is a picture of several frames, which a stage-2 checkpoint
reads one after the other.
"""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.images import decode, pixels
from pipeline.video import is_video, read_frames

Picture = str | Path | bytes | Image.Image | np.ndarray
"""An image: a path, the bytes of an encoded file, a PIL image, or a uint8 array ``HW3`` (RGB) or
``HW`` (grey); or the path of a video."""


def read_picture(picture: Picture) -> Tensor:
    """The image as a uint8 RGB tensor ``3HW``.

    Raises:
        FileNotFoundError: a path without a file.
        ValueError: the file is no image, and the message names the path; or an array of another
            shape or type.
    """
    if isinstance(picture, bytes):
        return decode(picture)
    if isinstance(picture, Image.Image):
        return pixels(picture)
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    path = Path(picture)
    if is_video(path):
        raise ValueError(
            f"{path} is a video, and this takes images; a stage-2 checkpoint reads both"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no such image file: {path}")
    try:
        return decode(path.read_bytes())
    except (ValueError, OSError) as broken:
        raise ValueError(f"{path}: {broken}") from broken


def _from_array(array: np.ndarray) -> Tensor:
    colours = array.shape[2:] == (3,)
    if array.dtype != np.uint8 or not array.size or not (array.ndim == 2 or colours):
        raise ValueError(
            f"image array of shape {array.shape} and type {array.dtype}: give uint8 of shape "
            "(height, width, 3), red first, or (height, width)"
        )
    rows = torch.from_numpy(array.copy())
    return (rows if colours else rows[..., None].expand(-1, -1, 3)).permute(2, 0, 1)


def frames_of(picture: Picture) -> list[Tensor]:
    """The frames of a video, or the one frame of an image: uint8 RGB tensors ``3HW``.

    Raises:
        FileNotFoundError: a path without a file.
        ValueError: the file is no image or video; names the path.
    """
    if not isinstance(picture, str | Path) or not is_video(picture):
        return [read_picture(picture)]
    try:
        return read_frames(Path(picture))
    except ValueError as broken:
        raise ValueError(f"{picture}: {broken}") from broken


def check_pictures(pictures: Sequence[Picture]) -> None:
    """Decode every image once, so that all unreadable ones are named before any work begins.

    Raises:
        ValueError: says how many images cannot be read, and names the first of them.
    """
    broken = []
    for place, picture in enumerate(pictures):
        try:
            frames_of(picture)
        except (ValueError, OSError) as why:
            broken.append(f"image {place}: {why}")
    if broken:
        shown = "; ".join(broken[:5]) + ("; ..." if len(broken) > 5 else "")
        raise ValueError(f"{len(broken)} of {len(pictures)} images cannot be read: {shown}")


def distinct(pictures: Sequence[Picture]) -> tuple[list[Picture], list[int]]:
    """The different images, and for each given one the index of its own among them.

    Two PIL images or arrays are the same where they are one object; paths and bytes, where they are
    equal.
    """
    index: dict[Hashable, int] = {}
    different: list[Picture] = []
    rows = []
    for picture in pictures:
        single = isinstance(picture, Image.Image | np.ndarray)
        key: Hashable = ("object", id(picture)) if single else cast(Hashable, picture)
        if key not in index:
            index[key] = len(different)
            different.append(picture)
        rows.append(index[key])
    return different, rows


def check_pairs(pictures: Sequence[Picture], texts: Sequence[str], name: str) -> None:
    """Refuse images and texts that are not two lists of one length.

    Args:
        name: the plural noun by which the message calls the texts.

    Raises:
        ValueError: one of the two is not a list, or their lengths differ.
    """
    if isinstance(pictures, str | bytes | Path | np.ndarray) or isinstance(texts, str):
        raise ValueError(f"images and {name} are lists; put a single one into [ ]")
    if len(pictures) != len(texts):
        raise ValueError(f"{len(pictures)} images for {len(texts)} {name}: one each is needed")
