"""A conversation about one image, which is encoded once for all of its questions.

chat = load("runs/instruct").chat("picture.jpg")
chat.ask("What is in the picture?")
chat.ask("What colour is it?")
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from jobs.models.languages import Language
from jobs.prediction.pictures import Picture
from jobs.prediction.presets import CAPTION
from modeling.language.adapters import DecoderLM, GenerationSettings
from modeling.language.chat_template import chat_template_layout
from modeling.language.conversation import (
    IMAGE,
    Layout,
    Turn,
    check_turns,
    encode,
    instruction,
    segments,
)
from modeling.language.reply import reply


class Speaker(Protocol):
    """The part of a ``Writer`` that a conversation needs."""

    @property
    def language(self) -> Language: ...

    @property
    def is_instructed(self) -> bool: ...

    def encode(self, images: Sequence[Picture]) -> Tensor: ...

    def visual_prompts(self, encoded: Tensor, texts: Sequence[str]) -> Tensor: ...

    def asked(self, questions: Sequence[str]) -> tuple[list[str], list[str] | None]: ...

    def speak(
        self,
        encoded: Tensor | None,
        prompts: Sequence[str],
        settings: GenerationSettings,
        read: Sequence[str] | None = None,
    ) -> list[str]: ...


class Chat:
    """A conversation with a stage-2 checkpoint about one image.

    How earlier turns are written depends on the checkpoint. With a chat template they are turns of
    it. A Q-Former that was trained on instructions (InstructBLIP) reads them as lines in front of
    the question, and so does the language model. Another checkpoint is given each question in the
    prompt that it answers (``Writer.vqa_prompt``), with its answer behind it.

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
            check_turns(turns, "of the conversation")
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
        said = self._answer(asked, settings)
        self.turns = [*asked, Turn("assistant", said)]
        return said

    def _answer(self, turns: list[Turn], settings: GenerationSettings) -> str:
        writer, language = self._writer, self._writer.language
        if isinstance(language, DecoderLM) and language.form.chat is not None:
            return self._answer_in(chat_template_layout(language.tokenizer), turns, settings)
        if writer.is_instructed:
            prompt = instruction(turns)
            return writer.speak(self._encoded, [prompt], settings)[0]
        prompts, read = writer.asked([turn.text for turn in turns[::2]])
        answers = [turn.text for turn in turns[1::2]]
        lines = [f"{asked} {said}" for asked, said in zip(prompts, answers, strict=False)]
        whole = "\n".join([*lines, prompts[-1]])
        return writer.speak(self._encoded, [whole], settings, read and read[-1:])[0]

    def _answer_in(self, layout: Layout, turns: list[Turn], settings: GenerationSettings) -> str:
        """The answer to turns that are written in a layout, the image in front of the first."""
        first = Turn("user", f"{IMAGE}{turns[0].text}")
        row = segments(layout, [first, *turns[1:]], reply=True)
        language = self._writer.language
        assert isinstance(language, DecoderLM)
        visual = self._writer.visual_prompts(self._encoded, [instruction(turns)])
        return reply(language, visual, [encode(row, language.tokenizer)], layout, settings)[0]
