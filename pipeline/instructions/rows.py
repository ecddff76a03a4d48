"""Samples of instruction tuning that are read from published files: rows in memory, images on disk.

A row is a caption, or a question with its answers. ``RowShards`` is a source of training samples as
a CapFilt output is one. Its records hold what ``pipeline.instructions.phrasing`` reads.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.ranks.dist import derive_seed
from cluster.storage.local import LocalStorage
from pipeline.sample import make_uid
from pipeline.shards.reading import BadSample, Shards


@dataclass(frozen=True, slots=True)
class Row:
    """One sample.

    Attributes:
        key: name of the sample, unique in its data set.
        image: file of the image.
        texts: the caption, or the answers to the question, as often as they were given.
        question: the question; "" for a caption.
        options: the answers to choose from; empty where the answer is free.
        choice: the right one of the options; "" without any.
        ocr_tokens: words that OCR found in the image.
    """

    key: str
    image: Path
    texts: tuple[str, ...]
    question: str = ""
    options: tuple[str, ...] = ()
    choice: str = ""
    ocr_tokens: tuple[str, ...] = ()


class RowShards(Shards):
    """Rows in memory: one shard, a sample a row.

    At each visit of a question one of its answers is drawn, so that an answer is learned as often
    as it was given.

    Args:
        name: name of the data set, such as ``okvqa``. The folder is not a part of it: what is drawn
            must not change when the data is moved.

    Raises:
        ValueError: no row, or one without a text to learn.
    """

    def __init__(self, name: str, rows: Sequence[Row]) -> None:
        if not rows:
            raise ValueError(f"--data {name}: there is nothing in it to learn")
        mute = next((row.key for row in rows if not _says(row)), None)
        if mute is not None:
            raise ValueError(
                f"--data {name}: {mute} has no answer or caption to learn; give a split with "
                "annotations"
            )
        learned = (
            (row.key, row.question, row.texts, row.options, row.choice, row.ocr_tokens)
            for row in rows
        )
        digest = f"{derive_seed(*learned):016x}"
        super().__init__(name, LocalStorage(Path()), [name], [len(rows)], digest)
        self._rows = tuple(rows)

    def members(self, shard: int, index: int) -> dict[str, bytes]:
        """The image's bytes, and a record as a shard of human captions has it."""
        row = self._rows[index]
        try:
            image = row.image.read_bytes()
        except OSError as broken:
            raise BadSample(f"its image {row.image} cannot be read") from broken
        texts = [text for text in row.texts if text.strip()]
        record = {
            "uid": make_uid("instructions", self.name, row.key),
            "captions": [{"text": text, "score": None, "origin": "human"} for text in texts],
            "kept": list(range(len(texts))),
            "question": row.question,
            "options": row.options,
            "choice": row.choice,
            "ocr_tokens": row.ocr_tokens,
        }
        return {"image": image, "json": json.dumps(record).encode()}

    def key(self, shard: int, index: int) -> str:
        return self._rows[index].key


def _says(row: Row) -> bool:
    """Whether there is something to learn from a row."""
    return bool(row.choice) or any(text.strip() for text in row.texts)
