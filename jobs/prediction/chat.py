"""A conversation about one image, which is encoded once for all of its questions.

chat = load("runs/instruct").chat("picture.jpg")
chat.ask("What is in the picture?")
chat.ask("What colour is it?")
"""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from jobs.prediction.pictures import Picture
from jobs.prediction.presets import CAPTION
from modeling.language.adapters import GenerationSettings
from modeling.language.conversation import (
    IMAGE,
    Encoded,
    Layout,
    Turn,
    check_turns,
    encode,
    segments,
)


class Speaker(Protocol):
    """The part of a ``Writer`` that a conversation needs."""

    def encode(self, images: Sequence[Picture]) -> Tensor: ...

    def converse(
        self,
        encoded: Tensor | None,
        talks: Sequence[Sequence[Turn]],
        settings: GenerationSettings,
    ) -> list[str]: ...


class Chat:
    """A conversation with a checkpoint that writes, about one image.

    Attributes:
        turns: the turns so far, the user's and the assistant's in turn.
    """

    def __init__(self, writer: Speaker, image: Picture, turns: Sequence[Turn] = ()) -> None:
        """Encode the image.

        Args:
            turns: earlier turns, the last of them an answer.

        Raises:
            ValueError: the image cannot be read, or the turns are no conversation.
        """
        if turns:
            check_turns(turns, "")
        self.turns = list(turns)
        self._writer = writer
        self._encoded = writer.encode([image])

    def ask(self, question: str, settings: GenerationSettings = CAPTION) -> str:
        """The answer to a further question; both become turns.

        Raises:
            ValueError: the question is empty or holds ``<image>``, or the conversation is longer
                than the language model's positions. The conversation then stays as it was.
        """
        if not question.strip() or IMAGE in question:
            raise ValueError(
                f"question {question!r}: give a text without {IMAGE}; the image is there already"
            )
        asked = [*self.turns, Turn("user", question.strip())]
        [said] = self._writer.converse(self._encoded, [asked], settings)
        self.turns = [*asked, Turn("assistant", said)]
        return said


def templated(
    layout: Layout, talks: Sequence[Sequence[Turn]], pictured: bool, tokenizer: Any
) -> list[Encoded]:
    """Conversations in a layout as ids, up to the answer, the image in front of the first words.

    Args:
        pictured: whether there is an image.
    """
    rows = []
    for first, *rest in talks:
        words = first.text.replace(IMAGE, "").strip()
        begin = Turn("user", f"{IMAGE}{words}" if pictured else words)
        rows.append(encode(segments(layout, [begin, *rest], reply=True), tokenizer))
    return rows


def dialogue(prompts: Sequence[str], answers: Sequence[str]) -> str:
    """The prompts of questions with their answers behind them, a line each, and the last prompt."""
    told = [f"{prompt} {answer}" for prompt, answer in zip(prompts[:-1], answers, strict=True)]
    return "\n".join([*told, prompts[-1]])
