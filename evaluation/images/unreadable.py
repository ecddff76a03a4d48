"""The check, before an evaluation begins, that all images and videos of it can be decoded."""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from pipeline.images import decode
from pipeline.video import is_video, read_frames

_SHOWN = 5


def find_unreadable(images: Mapping[str, Sequence[Path]], skip: bool) -> dict[Path, str]:
    """Decode the images and videos of all tasks.

    Args:
        images: the image or video files of each task.
        skip: leave out the images that cannot be decoded (``--skip-unreadable``).

    Returns:
        The files that are to be left out, each with its reason.

    Raises:
        ValueError: an image cannot be decoded, without ``skip``; or none of a task's images can.
    """
    paths = {path for of_task in images.values() for path in of_task}
    broken = unreadable(sorted(paths))
    if broken and not skip:
        raise ValueError(
            f"{len(broken)} of {len(paths)} {noun(paths)} cannot be decoded: {name_some(broken)}; "
            "repair them, or leave them out with --skip-unreadable"
        )
    for task, of_task in images.items():
        if broken.keys() >= set(of_task):
            kind = noun(of_task).removesuffix("s")
            raise ValueError(f"--tasks {task}: no {kind} can be decoded: {name_some(broken)}")
    return broken


def noun(paths: Iterable[Path]) -> str:
    """The plural noun for files in messages: ``videos`` where all are, else ``images``."""
    return "videos" if all(map(is_video, paths)) else "images"


def unreadable(paths: Iterable[Path]) -> dict[Path, str]:
    """Decode every file once, on all cores.

    This takes seconds, an evaluation takes minutes, and an image that first fails in the middle of
    an evaluation costs all of it.

    Returns:
        The files that cannot be decoded, each with its reason.
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
        if is_video(path):
            read_frames(path)
        else:
            decode(path.read_bytes())
    except (ValueError, OSError) as broken:
        return str(broken)
    return ""


def name_some(broken: Mapping[Path, str]) -> str:
    """The first few files that cannot be decoded, each with its reason, as part of a sentence."""
    some = [f"{path}: {why}" for path, why in list(broken.items())[:_SHOWN]]
    if len(broken) > _SHOWN:
        some.append(f"and {len(broken) - _SHOWN} more")
    return "; ".join(some)
