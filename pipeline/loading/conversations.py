"""Conversations as a source of training samples, for LLaVA and for instruction tuning."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cluster.ranks.dist import derive_seed
from cluster.storage.local import LocalStorage
from pipeline.sample import make_uid
from pipeline.shards.reading import BadSample, Shards
from pipeline.sources.conversations import Conversation, read_conversations


class ConversationShards(Shards):
    """Conversations in memory, images in their files: one shard, a sample a conversation.

    Args:
        name: ``FILE`` or ``FILE:FOLDER``, for messages.
        told: the conversations.
    """

    def __init__(self, name: str, told: Sequence[Conversation]) -> None:
        content = derive_seed(*((one.id, one.image is None, one.turns) for one in told))
        super().__init__(name, LocalStorage(Path()), [name], [len(told)], f"{content:016x}")
        # Not the folder: what is drawn must not change when the data is moved.
        self._told, self._file = tuple(told), Path(split_name(name)[0]).name

    def members(self, shard: int, index: int) -> dict[str, bytes]:
        """The image's bytes, where there is one, and the conversation as a record."""
        one = self._told[index]
        turns = [{"from": role, "value": text} for role, text in one.turns]
        uid = make_uid("conversations", self._file, self.key(shard, index))
        record = {"uid": uid, "conversations": turns}
        members = {"json": json.dumps(record).encode()}
        if one.image is None:
            return members
        try:
            return {"image": one.image.read_bytes(), **members}
        except OSError as broken:
            raise BadSample(f"its image {one.image} cannot be read") from broken

    def key(self, shard: int, index: int) -> str:
        """The number too: ids of published files repeat."""
        return f"{index} {self._told[index].id}"

    def lengths(self, shard: int) -> np.ndarray:
        """Characters of each conversation, negative for those without an image, int64 (N)."""
        return np.array(
            [
                sum(len(text) for _, text in one.turns) * (1 if one.image is not None else -1)
                for one in self._told
            ],
            dtype=np.int64,
        )


def is_conversations(name: str) -> bool:
    """Whether a ``--data`` names a file of conversations: ``FILE.json`` or ``FILE.json:FOLDER``."""
    return split_name(name)[0].endswith(".json")


def split_name(name: str) -> tuple[str, str]:
    """File and image folder of ``FILE.json:FOLDER``; "" for a folder that is not named."""
    file, mark, folder = name.partition(".json:")
    return (f"{file}.json", folder) if mark else (name, "")


def open_conversations(name: str) -> ConversationShards:
    """Open one ``--data`` of the form ``FILE.json`` or ``FILE.json:FOLDER``.

    Raises:
        ValueError: the file or an entry of it cannot be used; the message names it.
    """
    file, folder = split_name(name)
    return ConversationShards(
        name, read_conversations(Path(file), Path(folder) if folder else None)
    )
