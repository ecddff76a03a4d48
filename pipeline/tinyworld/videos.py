"""TinyWorld as small copies of the benchmarks about videos: MSVD-QA, MSRVTT-QA and iVQA.

The objects of a scene appear one after the other; the last of the four frames shows all of them.
"""

import csv
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av

from pipeline.tinyworld.files import write_json
from pipeline.tinyworld.render import IMAGE_SIZE, render
from pipeline.tinyworld.scene import Scene, sample_scene, stream
from pipeline.tinyworld.text import annotators, questions

FRAMES, RATE = 12, 4
SECONDS = FRAMES // RATE
"""Length of one scene in a video."""
_BITS = 2_000_000


def write_video(path: Path, scenes: Sequence[Scene], rng: random.Random) -> None:
    """Write the scenes, ``SECONDS`` each, as one MPEG-4 video, and the folders above it.

    The same bytes for the same scenes and random stream.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        track = container.add_stream("mpeg4", rate=RATE)
        track.width = track.height = IMAGE_SIZE
        track.pix_fmt, track.bit_rate, track.thread_count = "yuv420p", _BITS, 1
        for scene in scenes:
            start = rng.random()
            for number in range(FRAMES):
                shown = Scene(scene.things[: 1 + number // 3], scene.texture)
                picture = av.VideoFrame.from_image(render(shown, random.Random(start)))
                container.mux(track.encode(picture))
        container.mux(track.encode(None))


def write_videos(directory: Path, count: int, seed: int) -> None:
    """Write MSVD-QA, MSRVTT-QA and iVQA to ``directory/NAME``, ``count`` videos a split."""
    _msvdqa(directory / "msvdqa", count, seed)
    _msrvttqa(directory / "msrvttqa", count, seed)
    _ivqa(directory / "ivqa", count, seed)


def _msvdqa(folder: Path, count: int, seed: int) -> None:
    """The files bear the names of YouTube's clips; a list says which number each has."""

    def name(number: int) -> str:
        return f"-tiny{number:06x}_{number}_{number + SECONDS}"

    _write_splits(folder, count, seed, lambda number: folder / "video" / f"{name(number)}.avi")
    lines = (f"{name(number)} vid{number}\n" for number in range(1, 2 * count + 1))
    (folder / "youtube_mapping.txt").write_text("".join(lines), encoding="utf-8")


def _msrvttqa(folder: Path, count: int, seed: int) -> None:
    _write_splits(folder, count, seed, lambda number: folder / "video" / f"video{number}.mp4")


def _write_splits(folder: Path, count: int, seed: int, place: Callable[[int], Path]) -> None:
    """The questions and videos of the training and the test split, with one answer each."""
    for split, first in (("train", 1), ("test", count + 1)):
        entries: list[dict[str, Any]] = []
        for number in range(first, first + count):
            rng = stream(seed, folder.name, number)
            scene = sample_scene(rng, "train" if split == "train" else "eval")
            write_video(place(number), [scene], rng)
            for asked in questions(scene, rng):
                entry = {"id": len(entries), "video_id": number, "question": asked.text.lower()}
                entries.append(entry | {"answer": asked.answer})
        write_json(folder / f"{split}_qa.json", entries)


def _ivqa(folder: Path, count: int, seed: int) -> None:
    """A question is about the second of the two scenes of its video."""
    head = ["video_id", "start", "end", "question", *(f"answer{n}" for n in range(1, 6))]
    for split in ("train", "test"):
        rows: list[list[object]] = []
        for number in range(1, count + 1):
            rng = stream(seed, "ivqa", split, number)
            before, scene = sample_scene(rng, "eval"), sample_scene(rng, "eval")
            name = f"{split}-{number:06x}"
            write_video(folder / "video" / f"{name}.mp4", [before, scene], rng)
            asked = rng.choice(questions(scene, rng))
            said = annotators(asked, rng)[:5]
            rows.append([name, SECONDS, 2 * SECONDS, asked.text, *said])
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as lines:
            csv.writer(lines).writerows([head, *rows])
