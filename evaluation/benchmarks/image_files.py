"""The image files of a benchmark: which file an image id means, and whether all can be decoded."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from pipeline.filenames import is_image
from pipeline.images import decode

ImageId = int | str
_Key = TypeVar("_Key", int, str)
_SHOWN = 5
# A file name is no longer than this, so no longer number can be in one.
_MOST_DIGITS = 255


@dataclass(frozen=True)
class ImageIndex:
    """Image files by their names without suffix, by that name as a number, and by its end.

    The number at the end of a name counts where no name as a whole is the id: id 1 means ``1.jpg``
    or ``000001.jpg`` though ``cam_1.jpg`` lies beside it. An id may also be a file's whole name or
    the end of its path: ``1.jpg``, ``val/1.jpg``.
    """

    by_name: Mapping[str, tuple[Path, ...]]
    by_number: Mapping[int, tuple[Path, ...]]
    by_ending: Mapping[int, tuple[Path, ...]]

    def candidates(self, image_id: ImageId) -> tuple[Path, ...]:
        """The different files that an id may mean: none where there is none of it, one if clear."""
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
    """Index every image below ``folder``, through links to folders too, hidden files left out.

    Id 42 finds ``42.jpg``, ``000000000042.tif`` and ``COCO_val2014_000000000042.jpg``. Two names of
    one file (links) are one image.

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


def unreadable(paths: Iterable[Path]) -> dict[Path, str]:
    """Decode every file once, on all cores, and name those that cannot be: path -> reason.

    It costs seconds where the evaluation costs minutes, and an image that is found out in the
    middle of an evaluation costs all of it.
    """
    different = list(dict.fromkeys(paths))
    threads = ThreadPoolExecutor(os.cpu_count())
    try:
        reasons = threads.map(_reason, different)
        checked = tqdm(reasons, total=len(different), desc="check images", unit="image")
        return {path: why for path, why in zip(different, checked, strict=True) if why}
    finally:
        threads.shutdown(cancel_futures=True)


def _reason(path: Path) -> str:
    try:
        decode(path.read_bytes())
    except (ValueError, OSError) as broken:
        return str(broken)
    return ""


def name_some(broken: Mapping[Path, str]) -> str:
    """The first few of the files that cannot be decoded, each with its reason."""
    some = [f"{path}: {why}" for path, why in list(broken.items())[:_SHOWN]]
    if len(broken) > _SHOWN:
        some.append(f"and {len(broken) - _SHOWN} more")
    return "; ".join(some)
