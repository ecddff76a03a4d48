"""Questions about images as a source of training samples, for VQA finetuning."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.ranks.dist import derive_seed
from cluster.storage.local import LocalStorage
from pipeline.sample import make_uid
from pipeline.shards.reading import BadSample, Shards


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """One question about an image file, with the answers of people (VQAv2: ten of them)."""

    key: str
    image: Path
    question: str
    answers: tuple[str, ...]


class QuestionShards(Shards):
    """Questions in memory, images in their files: one shard, a sample a question.

    At each visit of a question one of its answers is drawn, so that an answer is learned as often
    as it was given. ``name`` is FOLDER:SPLIT.

    Raises:
        ValueError: no question, or one without an answer.
    """

    def __init__(self, name: str, asked: Sequence[AnsweredQuestion]) -> None:
        if not asked:
            raise ValueError(f"--data {name}: no question in it")
        mute = next((row.key for row in asked if not any(a.strip() for a in row.answers)), None)
        if mute is not None:
            raise ValueError(
                f"--data {name}: question {mute} has no answer to learn; give a split with "
                "annotations"
            )
        content = derive_seed(*((row.key, row.question, row.answers) for row in asked))
        here = LocalStorage(Path())
        super().__init__(name, here, [name], [len(asked)], f"{content:016x}")
        # Not the folder: what is drawn must not change when the data is moved.
        self._asked, self._split = tuple(asked), name.rpartition(":")[2]

    def members(self, shard: int, index: int) -> dict[str, bytes]:
        """The image's bytes, and a record as a shard of human captions has it."""
        row = self._asked[index]
        try:
            image = row.image.read_bytes()
        except OSError as broken:
            raise BadSample(f"its image {row.image} cannot be read") from broken
        answers = [answer for answer in row.answers if answer.strip()]
        record = {
            "uid": make_uid("questions", self._split, row.key),
            "question": row.question,
            "captions": [{"text": a, "score": None, "origin": "human"} for a in answers],
            "kept": list(range(len(answers))),
        }
        return {"image": image, "json": json.dumps(record).encode()}

    def key(self, shard: int, index: int) -> str:
        return self._asked[index].key
