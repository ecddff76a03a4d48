"""The image files of a benchmark: which file a name or an image id means."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from evaluation.benchmarks.records import ImageId, Question
from pipeline.filenames import is_image

_Key = TypeVar("_Key", int, str)
# Longest file name of common file systems: an id of more digits is in no file's name.
_MOST_DIGITS = 255


@dataclass(frozen=True)
class ImageIndex:
    """Image files under three keys, which ``candidates`` tries in this order.

    The number at the end of a name counts only where no whole name is the id: id 1 means ``1.jpg``
    or ``000001.jpg`` even if ``cam_1.jpg`` lies beside it. An id may also be a file's whole name
    or the end of its path: ``1.jpg``, ``val/1.jpg``.

    Attributes:
        by_name: files by their name without suffix.
        by_number: files whose whole name is a number, by that number.
        by_ending: files whose name ends with a number after other characters, by that number.
    """

    by_name: Mapping[str, tuple[Path, ...]]
    by_number: Mapping[int, tuple[Path, ...]]
    by_ending: Mapping[int, tuple[Path, ...]]

    def candidates(self, image_id: ImageId) -> tuple[Path, ...]:
        """The different files that an id may mean: one where it is clear, none if unknown."""
        name = str(image_id)
        found = self.by_name.get(name, ())
        if not found and is_image(name):
            stems = self.by_name.get(Path(name).stem, ())
            found = tuple(path for path in stems if f"/{path.as_posix()}".endswith(f"/{name}"))
        if not found and name.isdecimal() and len(name) <= _MOST_DIGITS:
            number = int(name)
            found = self.by_number.get(number) or self.by_ending.get(number, ())
        return found


def index_images(folder: Path) -> ImageIndex:
    """Index every image below ``folder``, through links to folders too, without hidden files.

    Id 42 finds ``42.jpg``, ``000000000042.tif`` or ``COCO_val2014_000000000042.jpg``. A file and
    the links to it are one image.

    Raises:
        FileNotFoundError: the folder is not there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no such image folder: {folder}")
    by_name: dict[str, list[Path]] = {}
    by_number: dict[int, list[Path]] = {}
    by_ending: dict[int, list[Path]] = {}
    for path in sorted(_image_files(folder)):
        by_name.setdefault(path.stem, []).append(path)
        ending = re.search(r"\d+$", path.stem)
        if ending:
            kind = by_number if ending.group() == path.stem else by_ending
            kind.setdefault(int(ending.group()), []).append(path)
    return ImageIndex(_different(by_name), _different(by_number), _different(by_ending))


def _image_files(folder: Path) -> Iterator[Path]:
    """Every image file below ``folder``; each real folder is read once, so a loop ends."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for file in files:
            path = Path(place, file)
            if is_image(path.relative_to(folder).as_posix()) and path.is_file():
                yield path


def _different(named: Mapping[_Key, list[Path]]) -> dict[_Key, tuple[Path, ...]]:
    """The paths of each key, in order; of several links to one file the first alone."""
    return {key: tuple(paths[:1] + _others(paths)) for key, paths in named.items()}


def _others(paths: list[Path]) -> list[Path]:
    if len(paths) == 1:
        return []
    files = {path.resolve(): path for path in reversed(paths)}
    return sorted(set(files.values()) - {paths[0]})


def find_images(questions: Sequence[Question], folder: Path, source: Path) -> dict[ImageId, Path]:
    """The file in ``folder`` of every image that is asked about.

    Args:
        source: file of the questions, which the messages name.

    Raises:
        FileNotFoundError: an image, or the folder, is not there.
        ValueError: several files fit an image's id equally well.
    """
    index = index_images(folder)
    images: dict[ImageId, Path] = {}
    for question in questions:
        key = question.image_id
        found = index.candidates(key)
        asks = f"{source}: question {question.question_id} asks about image {key}"
        if not found:
            raise FileNotFoundError(f"{asks}, which is not in {folder}")
        if len(found) > 1:
            named = ", ".join(str(path.relative_to(folder)) for path in found[:5])
            raise ValueError(f"{asks}, which may be any of {named} in {folder}; rename the others")
        images[key] = found[0]
    return images


def existing(folder: Path, names: Sequence[str], source: Path) -> Path:
    """The first of ``names`` that is a file in ``folder``.

    Raises:
        FileNotFoundError: none of them is; names ``source`` and the first name.
    """
    for name in names:
        path = folder / name
        if path.is_file():
            return path
    raise FileNotFoundError(f"{source}: image {names[0]} is not in {folder}")
