"""The video files below a benchmark's folder, by name: authors and users lay them out variously."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.filenames import is_hidden
from pipeline.video import is_video


def index_videos(folder: Path) -> dict[str, Path]:
    """Every video below ``folder``, without hidden files, by its name without suffix.

    Raises:
        ValueError: two videos have one name.
    """
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(files):
            path = Path(place, name)
            if not is_video(path) or is_hidden(path.relative_to(folder).as_posix()):
                continue
            other = found.setdefault(path.stem, path)
            if other.resolve() != path.resolve():
                raise ValueError(f"{other} and {path} have one name; remove one of the two")
    return found


def find_video(
    videos: Mapping[str, Path], names: Sequence[str], asks: str, folder: Path
) -> tuple[str, Path]:
    """The first of the names that a video has, and its file.

    Args:
        asks: begin of the message: the file, and what in it names the video.

    Raises:
        FileNotFoundError: no video has one of the names.
    """
    for name in names:
        if name in videos:
            return name, videos[name]
    raise FileNotFoundError(f"{asks}, and no video {' or '.join(names)} is in {folder}")
