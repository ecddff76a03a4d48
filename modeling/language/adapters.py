"""The two families of frozen language models (section 3.3): decoders and encoder-decoders.

Both turn soft visual prompts and texts into a loss (`loss`) or into generated texts (`generate`).

Shapes: see `modeling`; D width of the language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling.language.beams import generate
from modeling.language.frozen import FrozenLM
from modeling.language.pieces import begin_ids
from modeling.losses import IGNORED


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of beam search; the defaults are COCO captioning's but for the minimum length.

    Attributes:
        beams: Beams; 1 is greedy search.
        max_new_tokens: Tokens of a generated text at most; 10 for zero-shot VQA.
        min_new_tokens: Tokens of a generated text at least.
        length_penalty: Exponent of the length by which a beam's score is divided; -1 for zero-shot
            VQA, which favours short answers.
        repetition_penalty: Divisor of the scores of tokens that were generated before; 1: none.
        one_line: Whether only the first line of the text is kept. An answer to a question is one
            line; a model whose texts end with a token instead may go on with another question.
    """

    beams: int = 5
    max_new_tokens: int = 30
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    one_line: bool = False

    def __post_init__(self) -> None:
        if self.beams < 1 or self.max_new_tokens < 1:
            raise ValueError(
                f"beams = {self.beams} and max_new_tokens = {self.max_new_tokens} "
                "must be at least 1."
            )
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens = {self.min_new_tokens} must lie between 0 and "
                f"max_new_tokens = {self.max_new_tokens}."
            )

    def arguments(self) -> dict[str, Any]:
        """Arguments of transformers' `generate`.

        `max_length` is not among them: it goes negative where embeddings are the input.
        """
        return {
            "num_beams": self.beams,
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens,
            "length_penalty": self.length_penalty,
            "repetition_penalty": self.repetition_penalty,
            "do_sample": False,
        }

    def of_rows(self, rows: Sequence[int]) -> "GenerationSettings":
        """The settings of some rows of a call; a search has none of their own."""
        return self


class DecoderLM(FrozenLM):
    """A causal language model, such as OPT.

    Sequences are [queries][prompt][text end][padding] in training, and [padding][queries][prompt]
    in generation, the queries next to the text. A text of OPT's ends with the end of the line,
    another model's with its own end token. As in the reference, OPT's begin-of-sequence token is a
    target too, unless a text prompt holds it; another model's is given.
    """

    def _losses(
        self, prompts_BQD: Tensor | None, given: list[list[int]], targets: list[list[int]]
    ) -> tuple[Tensor, Tensor]:
        inputs_BSD, mask_BS = self._inputs(
            prompts_BQD, [a + b for a, b in zip(given, targets, strict=True)]
        )
        self._check_length(inputs_BSD.shape[1])
        queries = 0 if prompts_BQD is None else prompts_BQD.shape[1]
        ignored = [[IGNORED] * (queries + len(row)) for row in given]
        # The output at position i predicts the token at i + 1.
        labels = [(a + b)[1:] for a, b in zip(ignored, targets, strict=True)]
        if self._body is not None:
            # Padding comes last, where no target sees it: without a mask the model need not ask
            # the device what is in it, and takes its fastest attention.
            hidden_BSD = self._body(inputs_embeds=inputs_BSD, use_cache=False).last_hidden_state
            return self._loss_of_hidden(hidden_BSD, labels)
        logits_BSV = self.model(inputs_embeds=inputs_BSD, attention_mask=mask_BS).logits
        return self._loss_of_logits(logits_BSV[:, :-1], self._pad(labels, IGNORED))

    @torch.no_grad()
    def generate(
        self, prompts_BQD: Tensor | None, prompts_text: list[str], settings: GenerationSettings
    ) -> list[str]:
        """Continues each prompt up to the end of its text: of the line under the reference's rules.

        Args:
            prompts_BQD: Soft visual prompts, one for each text; None for text alone.
            prompts_text: Texts after the visual prompts; may be empty.
            settings: Beams, lengths, penalties.

        Raises:
            ValueError: Nothing is given to continue, or the sequence is longer than the model's
                positions.
        """
        if not prompts_text:
            return []
        given = self._given(prompts_text, prompts_BQD is not None)
        inputs_BSD, mask_BS = self._inputs(prompts_BQD, given)
        if not inputs_BSD.shape[1]:
            raise ValueError("nothing to continue: give a visual prompt or a text prompt.")
        self._check_length(inputs_BSD.shape[1] + settings.max_new_tokens)
        inputs_BSD, mask_BS = pad_left(inputs_BSD, mask_BS)
        ids_BL = generate(
            self.model,
            settings.arguments(),
            inputs_embeds=inputs_BSD,
            attention_mask=mask_BS,
            eos_token_id=self.form.stops,
            pad_token_id=self.form.pad,
        )
        return self._decode(ids_BL, self.form.reference or settings.one_line)

    def _rows(
        self, texts: list[str], uniform_B: Tensor | None, prompt_texts: list[str] | None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Whole texts are learned; long ones are cut but keep their end."""
        if prompt_texts is None and self.form.reference:
            ids = self._ids([text.strip() for text in texts], special=True)
            ids = [_without_end(row, self.tokenizer.eos_token_id) for row in ids]
            return [[] for _ in texts], self._ended(ids)
        asked = prompt_texts or [""] * len(texts)
        joints = [self._joint(prompt) for prompt in asked]
        return self._given(asked, pictured=True), self._continuations(texts, joints)

    def _continuations(self, texts: list[str], joints: list[str]) -> list[list[int]]:
        """Token ids of the texts behind prompts, with the end token.

        Args:
            texts: Texts; white space around them is dropped.
            joints: Text between the prompt and each text, from `_joint`.
        """
        written = [joint + text.strip() for joint, text in zip(joints, texts, strict=True)]
        return self._ended(self._ids(written, special=False))

    def _ended(self, rows: list[list[int]]) -> list[list[int]]:
        if self.form.cuts_end:  # the begin token counts too
            limit = self.max_text - len(self.form.begin)
            return [[*row, self.form.end][:limit] for row in rows]
        return [[*row[: self.max_text - 1], self.form.end] for row in rows]

    def _given(self, prompts: list[str], pictured: bool) -> list[list[int]]:
        """Token ids of the text prompts.

        Args:
            prompts: Text prompts; may be empty.
            pictured: Whether visual prompts stand in front of the text.
        """
        chat = self.form.chat
        if chat is not None:
            line = "\n" if pictured else ""
            written = [
                (line + text.strip() if text.strip() else "") + chat.tail for text in prompts
            ]
            return [chat.head + row for row in self._ids(written, special=False)]
        if self.form.reference:
            begin = len(begin_ids(self.tokenizer)) if self.max_prompt else 0
            return self._shortened(self._ids(prompts, special=True), begin)
        rows = [self.form.begin + row for row in self._ids(prompts, special=False)]
        return self._shortened(rows, len(self.form.begin))

    def _joint(self, prompt: str) -> str:
        """Text between a prompt and its continuation."""
        if self.form.chat is not None:
            return self.form.chat.joint
        return "" if prompt.endswith((" ", "\n")) or not prompt else " "


class EncoderDecoderLM(FrozenLM):
    """An encoder-decoder language model, such as FlanT5.

    The encoder reads [queries][prompt], and the decoder writes the text.
    """

    def _losses(
        self, prompts_BQD: Tensor | None, given: list[list[int]], targets: list[list[int]]
    ) -> tuple[Tensor, Tensor]:
        inputs_BSD, mask_BS = self._inputs(prompts_BQD, given)
        labels_BL = self._pad(targets, IGNORED)
        self._check_length(max(inputs_BSD.shape[1], labels_BL.shape[1]))
        shifted_BL = self._shifted(labels_BL)
        if self._body is None:
            logits_BLV = self.model(
                inputs_embeds=inputs_BSD, attention_mask=mask_BS, decoder_input_ids=shifted_BL
            ).logits
            return self._loss_of_logits(logits_BLV, labels_BL)
        equal = len({len(row) for row in given}) < 2
        seen = None if equal else _additive(mask_BS, inputs_BSD.dtype)
        hidden_BLD = self._decoded(inputs_BSD, seen, shifted_BL)
        return self._loss_of_hidden(self._scaled(hidden_BLD), targets)

    @torch.no_grad()
    def generate(
        self, prompts_BQD: Tensor | None, prompts_text: list[str], settings: GenerationSettings
    ) -> list[str]:
        """Writes a text for each prompt, up to the end-of-sequence token.

        Arguments are those of `DecoderLM.generate`.
        """
        if not prompts_text:
            return []
        inputs_BSD, mask_BS = self._inputs(prompts_BQD, self._given(prompts_text))
        self._check_length(max(inputs_BSD.shape[1], settings.max_new_tokens))
        ids_BL = generate(
            self.model, settings.arguments(), inputs_embeds=inputs_BSD, attention_mask=mask_BS
        )
        return self._decode(ids_BL, settings.one_line)

    def _rows(
        self, texts: list[str], uniform_B: Tensor | None, prompt_texts: list[str] | None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Without prompts a text is split, the prefix given and the suffix learned.

        Both parts begin and end with the tokens that the tokenizer puts around a text (FlanT5's
        puts none in front).
        """
        begin, end = self.form.begin, self.form.end
        ids = [
            row[: self.max_text - 1]
            for row in self._ids([text.strip() for text in texts], special=False)
        ]
        if prompt_texts is None:
            cuts = split_prefix(torch.tensor([len(row) for row in ids]), uniform_B).tolist()
            given = [[*begin, *row[:cut], end] for row, cut in zip(ids, cuts, strict=True)]
            ids = [row[cut:] for row, cut in zip(ids, cuts, strict=True)]
        else:
            given = self._given(prompt_texts)
        return given, [[*begin, *row, end] for row in ids]

    def _given(self, prompts: list[str], pictured: bool = True) -> list[list[int]]:
        """Token ids of the text prompts; `pictured` changes nothing here."""
        return self._shortened(self._ids(prompts, special=True), begin=0)

    def _joint(self, prompt: str) -> str:
        """Text between a prompt and its continuation: none, since the decoder begins anew."""
        return ""

    def _continuations(self, texts: list[str], joints: list[str]) -> list[list[int]]:
        """Token ids of the texts behind prompts, as `DecoderLM._continuations`."""
        return self._rows(texts, None, [""] * len(texts))[1]

    def _scaled(self, hidden_BLD: Tensor) -> Tensor:
        """Hidden states as the output matrix takes them; a T5 with a tied matrix scales them."""
        if getattr(self.model.config, "scale_decoder_outputs", False):
            return hidden_BLD * self.model.config.d_model**-0.5
        return hidden_BLD

    def _shifted(self, labels_BL: Tensor) -> Tensor:
        """The decoder's input: the labels, shifted right by one position."""
        start: int = self.model.config.decoder_start_token_id
        shifted_BL = F.pad(labels_BL[:, :-1], (1, 0), value=start)
        return shifted_BL.masked_fill(shifted_BL == IGNORED, self.form.pad)

    def _decoded(self, inputs_BSD: Tensor, seen: Tensor | None, shifted_BL: Tensor) -> Tensor:
        """The decoder's last hidden states (B, L, D)."""
        encoded_BSD = self.model.get_encoder()(
            inputs_embeds=inputs_BSD, attention_mask=seen
        ).last_hidden_state
        return self.model.get_decoder()(
            input_ids=shifted_BL,
            encoder_hidden_states=encoded_BSD,
            encoder_attention_mask=seen,
            use_cache=False,
        ).last_hidden_state


def split_prefix(lengths_B: Tensor, uniform_B: Tensor | None = None) -> Tensor:
    """Split points of the prefix LM's texts (section 3.3): uniform from 1 to the middle.

    Args:
        lengths_B: Tokens of each text, int64.
        uniform_B: Numbers in [0, 1), one for each text; None draws them.

    Returns:
        Tokens of each prefix, int64; 0 for a text of one token.
    """
    if uniform_B is None:
        uniform_B = torch.rand(lengths_B.shape, dtype=torch.float64)
    middle_B = lengths_B // 2
    return torch.where(middle_B > 0, 1 + (uniform_B * middle_B).long(), torch.zeros_like(middle_B))


def pad_left(inputs_BSD: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Moves padding from the right to the left, so that queries stay next to the text."""
    size = mask_BS.shape[1]
    padding_B1 = size - mask_BS.sum(1, keepdim=True)
    index_BS = (torch.arange(size, device=mask_BS.device)[None] - padding_B1) % size
    turned_BSD = inputs_BSD.gather(1, index_BS[..., None].expand_as(inputs_BSD))
    return turned_BSD, mask_BS.gather(1, index_BS)


def _additive(mask_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask (B, 1, 1, S) that models add to attention scores.

    Models take it as it is; one of ones and zeros they would read back from the device first.
    """
    return (1 - mask_BS.to(dtype))[:, None, None] * torch.finfo(dtype).min


def _without_end(row: list[int], end: int | None) -> list[int]:
    """Ids without an end-of-sequence token at the end.

    Some tokenizers append it; OPT's puts the same token in front, and there it stays.
    """
    return row[:-1] if len(row) > 1 and row[-1] == end else row
