"""The files of TinyWorld's data sets: JSON, JSON lines, and pictures of scenes."""

import json
import random
from pathlib import Path
from typing import Any

from pipeline.tinyworld.render import jpeg, render
from pipeline.tinyworld.scene import Scene


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a file with one JSON text a line, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_picture(path: Path, scene: Scene, rng: random.Random) -> None:
    """Draw the scene into a JPEG or PNG file, by its suffix, and write the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = render(scene, rng)
    if path.suffix == ".png":
        image.save(path)
    else:
        path.write_bytes(jpeg(image))
