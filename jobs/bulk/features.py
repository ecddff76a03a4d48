"""Features of many images, texts and pairs by a stage-1 checkpoint, and their files.

OUT/images.npy       images x queries x width, L2-normalised, fp32
OUT/pooled.npy       images x width: the mean over queries, L2-normalised
OUT/images.parquet   a row an image: image, row in the two arrays (-1: none), failed
OUT/texts.npy, texts.parquet           features of --texts
OUT/pairs.parquet, joint.npy           scores of --pairs; features of pairs with --joint
OUT/embed.json       checkpoint, input, widths
"""

import hashlib
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from cluster.storage.chunks import ChunkStore
from cluster.storage.open import open_storage
from jobs.bulk.arguments import WorkArgs
from jobs.bulk.captions import read_record
from jobs.bulk.run import Made, Named
from jobs.predict import load_embedder, pool
from jobs.prediction.arithmetic import Arithmetic
from pipeline.sources.pictures import Piece

Pairs = Mapping[str, Sequence[tuple[int, str]]]
"""For each image the numbers and texts of its pairs."""


@dataclass(frozen=True)
class EmbedArgs:
    """Checkpoint, images and texts."""

    checkpoint: str
    """folder of a stage-1 run (its latest checkpoint is taken) or of one checkpoint"""
    input: str
    """folder of images or of tars, one .tar, a .jsonl with an image in each line, one image, or an
    s3:// URL of one of these"""
    out: str
    """folder that receives the features"""
    images: str | None = None
    """image folder of a .jsonl; default: the folder that it is in"""
    texts: Path | None = None
    """text file with a text on each line, to be embedded"""
    pairs: Path | None = None
    """.jsonl with image and text in each line, to be scored by ITC and ITM"""
    joint: bool = False
    """keep the joint features of --pairs: the Q-Former's outputs that saw image and text"""
    work: Annotated[WorkArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=WorkArgs)

    def __post_init__(self) -> None:
        if self.joint and self.pairs is None:
            raise ValueError("--joint keeps features of pairs; give them with --pairs FILE")


def read_lines(path: Path | None) -> list[str]:
    """The lines of ``--texts`` that are not empty."""
    lines = [] if path is None else path.read_text(encoding="utf-8").split("\n")
    return [line.strip() for line in lines if line.strip()]


def read_pairs(path: Path | None) -> list[tuple[str, str]]:
    """The (image, text) pairs of ``--pairs``.

    Raises:
        ValueError: a line lacks its image or text.
    """
    found = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            record = json.loads(line)
            image, text = record["image"], record["text"]
            if not isinstance(image, str) or not isinstance(text, str):
                raise TypeError("image and text are texts")
            found.append((image, text))
        except (ValueError, KeyError, TypeError) as broken:
            raise ValueError(
                f"--pairs {path}, line {number}: expected an object with image and text "
                f"({broken!r})"
            ) from broken
    return found


def plan_of(args: EmbedArgs, checkpoint: str) -> dict[str, Any]:
    """What the features depend on, beside images and arithmetic."""
    told = json.dumps(read_pairs(args.pairs)).encode()
    pairs = hashlib.sha256(told).hexdigest() if args.pairs else ""
    return {"checkpoint": checkpoint, "pairs": pairs, "joint": args.joint}


class Embedding:
    """A checkpoint that makes the features of pieces (``jobs.bulk.run.Worker``)."""

    def __init__(self, args: EmbedArgs, pairs: Pairs, device: str, arithmetic: Arithmetic) -> None:
        self._args, self._pairs = args, pairs
        size = args.work.batch_size
        self._model = load_embedder(
            args.checkpoint, device, dtype=arithmetic.dtype, batch_size=size
        )

    def process(self, records: Sequence[Named]) -> Made:
        """Features of the images in their order, and of the pairs that they are in."""
        size = self._args.work.batch_size
        told: list[dict[str, str]] = []
        found: dict[str, list[np.ndarray]] = {}
        for first in range(0, len(records), size):
            images: dict[str, np.ndarray] = {}
            for name, record in records[first : first + size]:
                picture, failed = read_record(record)
                told.append({"image": name, "failed": failed})
                if picture is not None:
                    images[name] = picture
            if images:
                for name, array in self._embed(images):
                    found.setdefault(name, []).append(array)
        arrays = {name: np.concatenate(parts) for name, parts in found.items()}
        return {"items": len(told), "images": told}, arrays

    def _embed(self, images: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        pictures = list(images.values())
        yield "queries", self._model.image_embeds(pictures).numpy()
        asked = [(name, *pair) for name in images for pair in self._pairs.get(name, ())]
        if not asked:
            return
        seen, texts = [images[name] for name, _, _ in asked], [text for _, _, text in asked]
        yield "pair", np.array([number for _, number, _ in asked], dtype=np.int64)
        yield "itc", self._model.similarity(seen, texts).numpy()
        yield "itm", self._model.match(seen, texts).numpy()
        if self._args.joint:
            yield "joint", self._model.joint_embeds(seen, texts).numpy()


def gather(
    store: ChunkStore, pieces: Sequence[Piece]
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The rows of images and the arrays of all pieces, in their order."""
    told: list[dict[str, Any]] = []
    parts: dict[str, list[np.ndarray]] = {}
    row = 0
    for piece in pieces:
        header, arrays = store.read(piece.name)
        for one in header["images"]:
            told.append({"image": one["image"], "row": -1 if one["failed"] else row,
                         "failed": one["failed"]})  # fmt: skip
            row += not one["failed"]
        assert isinstance(arrays, dict)
        for name, array in arrays.items():
            parts.setdefault(name, []).append(array)
    return told, {name: np.concatenate(found) for name, found in parts.items()}


def write_features(
    args: EmbedArgs,
    told: Sequence[Mapping[str, Any]],
    arrays: Mapping[str, np.ndarray],
    texts: tuple[Sequence[str], np.ndarray | None],
) -> None:
    """Write the files of the output, each replaced once the new one is whole."""
    import torch

    if "queries" in arrays:
        queries = arrays["queries"]
        write_array(args.out, "images.npy", queries)
        write_array(args.out, "pooled.npy", pool(torch.from_numpy(queries)).numpy())
    names = ("image", "row", "failed")
    write_table(args.out, "images.parquet", {name: [one[name] for one in told] for name in names})
    lines, features = texts
    if features is not None:
        write_array(args.out, "texts.npy", features)
        write_table(args.out, "texts.parquet", {"text": list(lines)})
    if args.pairs is not None:
        _write_pairs(args, arrays)


def _write_pairs(args: EmbedArgs, arrays: Mapping[str, np.ndarray]) -> None:
    """Scores in the order of ``--pairs``; a pair whose image is not there has none."""
    pairs = read_pairs(args.pairs)
    row_of = {int(number): row for row, number in enumerate(arrays.get("pair", ()))}
    table: dict[str, list[Any]] = {
        "image": [image for image, _ in pairs],
        "text": [text for _, text in pairs],
    }
    for name in ("itc", "itm"):
        table[name] = [
            float(arrays[name][row_of[n]]) if n in row_of else None for n in range(len(pairs))
        ]
    if args.joint and "joint" in arrays:
        order = [row_of[n] for n in sorted(row_of)]
        write_array(args.out, "joint.npy", arrays["joint"][order])
        table["row"] = [sorted(row_of).index(n) if n in row_of else -1 for n in range(len(pairs))]
    write_table(args.out, "pairs.parquet", table)


def write_array(out: str, name: str, array: np.ndarray) -> None:
    """Write an array as ``.npy``."""
    with tempfile.TemporaryFile() as file:
        np.save(file, array, allow_pickle=False)
        file.seek(0)
        open_storage(out).replace(name, file.read())


def write_table(out: str, name: str, columns: Mapping[str, list[Any]]) -> None:
    """Write columns as Parquet."""
    made = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), made, compression="zstd")
    open_storage(out).replace(name, made.getvalue())
