"""A decoder that was trained on conversations in a layout, the image first (LLaVA).

    language = TalkingLM(model, tokenizer, LAYOUTS["v1"])
    language.generate(prompts_BQD, ["What is this?"], settings)  # a question each, in the layout
    language.converse(prompts_BQD, [turns], settings)            # whole conversations

Shapes: see `modeling`; D width of the language model.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modeling.language.adapters import DecoderLM, GenerationSettings
from modeling.language.conversation import IMAGE, Encoded, Layout, Turn, encode, segments
from modeling.language.reply import reply
from modeling.language.text import Chat


class TalkingLM(DecoderLM):
    """A causal language model whose prompts are questions, written in a conversation layout.

    Prompts and continuations of `DecoderLM` are thus the user's question and the answer with its
    stop, so that answers can be ranked as well.
    """

    def __init__(self, model: Any, tokenizer: Any, layout: Layout, max_text: int = 2048) -> None:
        """Args:
            model: A causal language model from transformers; it is frozen.
            tokenizer: Its tokenizer.
            layout: Form of the conversations that it was trained on.
            max_text: Tokens of an answer at most, its stop included.

        Raises:
            ValueError: The tokenizer does not fit the model, or has no end token where the layout
                needs one.
        """
        super().__init__(model, tokenizer, max_text, "own")
        self.layout = layout
        empty = self._encoded([Turn("user", IMAGE)])
        # The image stands behind the head, whatever is asked: `DecoderLM` puts it there.
        head = empty.ids[: empty.image_at[0]]
        self.form = replace(self.form, chat=Chat(head, tail="", joint="", end=None))

    @torch.no_grad()
    def converse(
        self,
        prompts_BQD: Tensor | None,
        talks: Sequence[Sequence[Turn]],
        settings: GenerationSettings,
    ) -> list[str]:
        """Answers to the last turns of conversations, which are the user's.

        Args:
            prompts_BQD: Visual prompts, one for each conversation; None: text alone.
            talks: The conversations; an `<image>` is put in front of the first turn.
            settings: Beams, lengths, penalties.

        Raises:
            ValueError: A conversation is malformed, or longer than the model's positions.
        """
        made = [self._encoded(self._pictured(talk, prompts_BQD is not None)) for talk in talks]
        texts = reply(self, prompts_BQD, made, self.layout, settings) if made else []
        return [text.partition("\n")[0].strip() for text in texts] if settings.one_line else texts

    def generate(
        self, prompts_BQD: Tensor | None, prompts_text: list[str], settings: GenerationSettings
    ) -> list[str]:
        """Answers to questions; arguments are those of `DecoderLM.generate`."""
        talks = [[Turn("user", text)] for text in prompts_text]
        return self.converse(prompts_BQD, talks, settings)

    def _rows(
        self, texts: list[str], uniform_B: Tensor | None, prompt_texts: list[str] | None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Questions, empty without `prompt_texts`, and answers with their stops."""
        asked = prompt_texts or [""] * len(texts)
        return self._given(asked, pictured=True), self._continuations(texts, [""] * len(texts))

    def _given(self, prompts: list[str], pictured: bool) -> list[list[int]]:
        """Token ids of the questions; with an image, its place is behind the head."""
        talks = [self._pictured([Turn("user", text)], pictured) for text in prompts]
        return [self._encoded(talk).ids for talk in talks]

    def _continuations(self, texts: list[str], joints: list[str]) -> list[list[int]]:
        """Token ids of answers with their stops; the text between is the layout's."""
        rows = []
        for text in texts:
            talk = [Turn("user", IMAGE), Turn("assistant", text)]
            made = encode(segments(self.layout, talk), self.tokenizer)
            learned = zip(made.ids, made.target, strict=True)
            rows.append([token for token, target in learned if target][: self.max_text])
        return rows

    def _joint(self, prompt: str) -> str:
        """Text between a question and its answer: the layout's, which is written elsewhere."""
        return ""

    def _encoded(self, talk: Sequence[Turn]) -> Encoded:
        return encode(segments(self.layout, talk, reply=True), self.tokenizer)

    @staticmethod
    def _pictured(talk: Sequence[Turn], pictured: bool) -> list[Turn]:
        """The conversation with a place for the image where it has one, in front of its words."""
        first, *rest = talk
        words = first.text.replace(IMAGE, "").strip()
        return [Turn(first.role, f"{IMAGE}\n{words}" if pictured else words), *rest]
