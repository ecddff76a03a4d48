"""Frames of videos: which are taken, parts of videos, files that are no videos."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from pipeline.images import ImageError
from pipeline.video import centres, is_video, part_of, read_frames, video_file

RATE = 10


def write(path: Path, greys: list[int], codec: str = "ffv1", rate: int = RATE) -> Path:
    """A video whose frame n is of the n-th grey; ffv1 loses nothing."""
    with av.open(str(path), "w") as container:
        track = container.add_stream(codec, rate=rate)
        track.width = track.height = 16
        track.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        for grey in greys:
            pixels = np.full((16, 16, 3), grey, np.uint8)
            container.mux(track.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(track.encode(None))
    return path


def greys(path: Path, count: int = 4) -> list[int]:
    frames = read_frames(path, count)
    assert all(frame.shape == (3, 16, 16) and frame.dtype == torch.uint8 for frame in frames)
    assert all(len(frame.unique()) == 1 for frame in frames)
    return [int(frame[0, 0, 0]) for frame in frames]


def test_centres_of_equal_parts() -> None:
    assert centres(8, 4) == [1, 3, 5, 7]
    assert centres(100, 4) == [12, 37, 62, 87]
    assert centres(4, 4) == [0, 1, 2, 3]
    assert centres(3, 4) == [0, 1, 1, 2]
    assert centres(1, 4) == [0, 0, 0, 0]


@pytest.mark.parametrize("suffix", ["avi", "mkv"])
def test_four_frames_are_taken_and_are_the_same_again(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", [2 * n for n in range(100)])
    assert greys(path) == [24, 74, 124, 174] == greys(path)
    assert greys(path, 1) == [100]
    short = write(tmp_path / f"b.{suffix}", [7])
    assert greys(short) == [7, 7, 7, 7]


@pytest.mark.parametrize("packets", [0, 60, 140])
def test_frames_are_counted_where_packets_are_not_frames(
    tmp_path: Path, packets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.avi", [2 * n for n in range(100)])
    monkeypatch.setattr("pipeline.video._packets", lambda file: packets)
    assert greys(path) == [24, 74, 124, 174]


def test_a_part_of_a_video_is_its_frames_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", [2 * n for n in range(100)])
    # Seconds 2 to 3 are the frames 20 to 29: their centres are 21, 23, 26, 28.
    assert greys(part_of(path, 2, 3)) == [42, 46, 52, 56]
    assert greys(part_of(path, 0, 0.4)) == [0, 2, 4, 6]
    assert greys(part_of(path, 9.5, 99)) == [2 * n for n in (95, 96, 98, 99)]
    with pytest.raises(ImageError, match="empty_video: it holds no frame in this part"):
        read_frames(part_of(path, 11, 12))
    with pytest.raises(ValueError, match="give 0 <= start < end"):
        part_of(path, 3, 3)


def test_a_part_between_key_frames_is_decoded_from_the_key_frame_before(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [2 * n for n in range(100)], codec="mpeg4")
    whole = [int(frame.float().mean().round()) for frame in read_frames(path, 100)]
    part = [int(frame.float().mean().round()) for frame in read_frames(part_of(path, 3.3, 3.7))]
    assert part == whole[33:37]


def test_paths_of_videos_and_of_parts() -> None:
    part = part_of(Path("x/a b.MP4"), 3, 7.25)
    assert str(part) == "x/a b.MP4#t=3,7.25"
    assert video_file(part) == Path("x/a b.MP4") == video_file(Path("x/a b.MP4"))
    assert is_video(part) and is_video("x/a.webm") and is_video(Path("a.avi"))
    assert not is_video("a.jpg") and not is_video("a.jpg#t=1,2") and not is_video("mp4")


def test_files_that_are_no_videos_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such video file: .*gone\.mp4"):
        read_frames(part_of(tmp_path / "gone.mp4", 1, 2))
    page = tmp_path / "page.mp4"
    for content in (b"", b"<html>", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n"):
        page.write_bytes(content)
        with pytest.raises(ImageError, match="undecodable_video"):
            read_frames(page)
    whole = write(tmp_path / "a.mp4", [9] * 40, codec="mpeg4")
    page.write_bytes(whole.read_bytes()[:-200])  # an MP4's index is at its end
    with pytest.raises(ImageError, match="undecodable_video"):
        read_frames(page)


def test_sound_without_pictures_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        track = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    with pytest.raises(ImageError, match="no_video"):
        read_frames(path)
