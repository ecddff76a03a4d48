"""The frames of a video: a few pictures, evenly spread over it and the same in every run.

A path names a video by its suffix, and a part of one by a media fragment as the W3C defines it:
``talk.mp4#t=3,7.5`` means the frames from second 3 up to second 7.5.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import av
import torch
from av.container import InputContainer
from torch import Tensor

from pipeline.images import MAX_PIXELS, ImageError

FRAMES = 4
"""Frames that stand for a video (InstructBLIP, appendix E)."""
VIDEO_SUFFIXES = ("mp4", "avi", "mkv", "webm", "mov", "m4v", "mpg", "mpeg", "flv", "wmv", "3gp")
"""Suffixes of video files, in lower case, without the dot."""
_FRAGMENT = re.compile(r"#t=(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)$")

Span = tuple[float, float]
"""First second, and the second at which the part ends."""


def is_video(path: str | Path) -> bool:
    """Whether a path names a video, or a part of one."""
    return video_file(Path(path)).suffix.lower().removeprefix(".") in VIDEO_SUFFIXES


def part_of(path: Path, start: float, end: float) -> Path:
    """The path that means a part of a video, from second ``start`` up to second ``end``.

    Raises:
        ValueError: the part does not begin at 0 or later, or does not end after its begin.

    >>> str(part_of(Path("a.mp4"), 3, 7.5))
    'a.mp4#t=3,7.5'
    """
    if not 0 <= start < end:
        raise ValueError(f"a part of {path} from second {start} to {end}: give 0 <= start < end")
    first, last = (f"{second:.3f}".rstrip("0").rstrip(".") for second in (start, end))
    return path.with_name(f"{path.name}#t={first},{last}")


def video_file(path: Path) -> Path:
    """The file behind a path of a video or of a part of one."""
    return path.with_name(_FRAGMENT.sub("", path.name)) if path.name else path


def read_frames(path: Path, count: int = FRAMES) -> list[Tensor]:
    """The frames at the centres of ``count`` equal parts of a video.

    Frames are counted by decoding: the number in a header, and that of packets, may be wrong. A
    video of fewer frames gives some of them several times.

    Returns:
        ``count`` uint8 RGB tensors ``3HW``.

    Raises:
        FileNotFoundError: the file is not there.
        ImageError: the file has no frame that can be decoded, is damaged, or its frames are too
            large.
    """
    file, part = video_file(path), _FRAGMENT.search(path.name)
    span = (float(part[1]), float(part[2])) if part else None
    if not file.is_file():
        raise FileNotFoundError(f"no such video file: {file}")
    try:
        total, found = -1, 0 if span else _packets(file)
        while found != total:  # a second time where packets were not frames, or of a part
            total = found
            taken, found = _take(file, span, set(centres(total, count)) if total else set())
    except av.FFmpegError as broken:
        raise ImageError("undecodable_video", f"{type(broken).__name__}: {broken}") from broken
    if not total:
        raise ImageError("empty_video", "it holds no frame" + (" in this part" if span else ""))
    return [taken[place] for place in centres(total, count)]


def centres(total: int, count: int) -> list[int]:
    """The indices at the centres of ``count`` equal parts of ``total`` things.

    >>> centres(8, 4), centres(1, 4)
    ([1, 3, 5, 7], [0, 0, 0, 0])
    """
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


def _take(file: Path, span: Span | None, wanted: set[int]) -> tuple[dict[int, Tensor], int]:
    """The wanted frames by their place, and the number of all."""
    taken: dict[int, Tensor] = {}
    number = 0
    for number, frame in enumerate(_decode(file, span), 1):
        if number - 1 in wanted:
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            taken[number - 1] = pixels.permute(2, 0, 1)
    return taken, number


def _packets(file: Path) -> int:
    """The number of packets with content: with most codecs, that of frames."""
    with _open(file) as container:
        streams = container.streams.video[:1]
        return sum(packet.size > 0 for packet in container.demux(*streams)) if streams else 0


def _open(file: Path) -> InputContainer:
    # A playlist that calls itself a video could otherwise make the decoder fetch from the network.
    return av.open(str(file), options={"protocol_whitelist": "file"})


def _decode(file: Path, span: Span | None) -> Iterator[av.VideoFrame]:
    """The frames of the file's first video stream, in the order in which they are shown."""
    with _open(file) as container:
        if not container.streams.video:
            raise ImageError("no_video", "it has no stream of pictures")
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            size = f"{stream.width} x {stream.height} is over {MAX_PIXELS:,} pixels"
            raise ImageError("too_many_pixels", size)
        if span is None:
            yield from container.decode(stream)
        else:
            yield from _within(container, stream, span)


def _within(
    container: InputContainer, stream: av.VideoStream, span: Span
) -> Iterator[av.VideoFrame]:
    start, end = span
    begin = float((stream.start_time or 0) * (stream.time_base or 0))
    container.seek(int((begin + start) * av.time_base))  # to the last key frame before it
    for frame in container.decode(stream):
        if frame.time is None:
            raise ImageError("no_times", "its frames have no times, so that no part can be taken")
        second = frame.time - begin
        if second >= end:
            return
        if second >= start:
            yield frame
