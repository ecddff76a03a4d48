"""Frozen language models behind two small adapters: decoders such as OPT, encoder-decoders such as
FlanT5 (section 3.3).

Legend: B batch, Q queries, L text tokens, S = Q + L, D width of the language model, N target
    tokens, V vocabulary.

An adapter is not an `nn.Module`: it is never registered in what trains, so no engine casts,
broadcasts or saves it. The model stays in eval mode (the reference left dropout on) and its
weights get no gradient, but gradients flow through it to the prompts.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.models.t5.modeling_t5 import T5Attention

from modeling import gather, losses
from modeling.language_head import plain_body
from modeling.language_text import Rules, Template, text_form
from modeling.linear import faster_products
from modeling.losses import IGNORED
from modeling.vision import freeze


@dataclass(frozen=True)
class GenerationSettings:
    """Beam search; the defaults are COCO captioning's but for the minimum length. VQA: 10 tokens,
    length penalty -1.

    Attributes:
        one_line: keep the first line of what is said. An answer to a question is one line; a model
            that ends its texts with a token of its own may go on with a question of its own.
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
        """For `generate`; `max_length` is not among them, it goes negative with embeddings as
        input.
        """
        return {
            "num_beams": self.beams,
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens,
            "length_penalty": self.length_penalty,
            "repetition_penalty": self.repetition_penalty,
            "do_sample": False,
        }


def fused_gelu(model: Any) -> Any:
    """Gives a model torch's GELU in place of one that transformers writes out (FlanT5's, GPT-2's):
    one kernel that keeps its input for the backward pass, where eight operators keep four tensors.
    """
    for part in list(model.modules()):
        for name, child in part.named_children():
            if type(child) is NewGELUActivation:
                setattr(part, name, nn.GELU(approximate="tanh"))
    return model


class _T5Attention(T5Attention):
    """T5's attention, whose relative position bias lies in memory as fused kernels want it.

    transformers makes the bias by a permutation. Before 5.23 it stays one, and a GPU then writes
    attention out; since then it is copied in every block.
    """

    def compute_bias(self, *given: Any, **more: Any) -> Tensor:
        bias: Tensor = super().compute_bias(*given, **more)
        return bias.contiguous()


def fused_attention(model: Any) -> Any:
    """Gives a T5's attention a bias that lets fused kernels run."""
    for part in model.modules():
        if type(part) is T5Attention:
            part.__class__ = _T5Attention
    return model


class _Frozen:
    """What both families share: the frozen model, its embeddings, tokens in and text out."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_text: int = 32,
        rules: Rules = "auto",
        template: Template = "plain",
    ) -> None:
        """Args:
            model: a language model from transformers; it is frozen and put into eval mode.
            tokenizer: the one it was trained with.
            max_text: tokens a text is cut to, with its end.
            rules: how texts begin and end (`modeling.language_text`).
            template: whether prompts are written with the tokenizer's chat template.

        Raises:
            ValueError: the tokenizer does not fit the model, or lacks what `rules` or `template`
                need.
        """
        self.form = text_form(tokenizer, model, rules, template)
        self.model = fused_attention(fused_gelu(faster_products(freeze(model))))
        self.tokenizer = tokenizer
        self.max_text = max_text
        self.embed = model.get_input_embeddings()
        self.width: int = self.embed.embedding_dim
        self.max_positions: int | None = getattr(
            model.config.get_text_config(), "max_position_embeddings", None
        )
        self._body = plain_body(self.model)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights."""
        return self.embed.weight.dtype

    def to(self, device: torch.device | str) -> None:
        """Moves the model."""
        self.model.to(device)

    def loss(
        self,
        prompts_BQD: Tensor | None,
        texts: list[str],
        uniform_B: Tensor | None = None,
        prompt_texts: list[str] | None = None,
        count: float | None = None,
    ) -> Tensor:
        """Mean language-modelling loss over the target tokens of all ranks (a collective call).

        Args:
            prompts_BQD: Soft visual prompts with a gradient; None for text alone.
            texts: What to learn to say.
            uniform_B: Numbers in [0, 1) that say where each text is split (encoder-decoder); None
                draws them.
            prompt_texts: Text in front of the target, itself not learned, one a sample: "a photo
                of", a question.
            count: Target tokens of this rank that the sum is divided by, where this is one of
                several micro-batches: `count_targets` of all of them over their number.

        Returns:
            fp32 scalar. Averaged over ranks (and micro-batches) it is the joined batch's.
        """
        total, own = self.token_losses(prompts_BQD, texts, uniform_B, prompt_texts)
        return gather.world_mean(total, own if count is None else torch.full_like(own, count))

    def count_targets(
        self,
        texts: list[str],
        uniform_B: Tensor | None = None,
        prompt_texts: list[str] | None = None,
    ) -> int:
        """How many tokens `token_losses` would sum over; arguments as for it."""
        return sum(map(len, self._rows(texts, uniform_B, prompt_texts)[1]))

    def _rows(
        self, texts: list[str], uniform_B: Tensor | None, prompt_texts: list[str] | None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids that are given and token ids to learn, of each text."""
        raise NotImplementedError

    def token_losses(
        self,
        prompts_BQD: Tensor | None,
        texts: list[str],
        uniform_B: Tensor | None = None,
        prompt_texts: list[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """This rank's summed loss and its number of target tokens; arguments as for `loss`."""
        raise NotImplementedError

    def _ids(self, texts: list[str], special: bool) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=special)["input_ids"] if texts else []

    def _pad(self, rows: list[list[int]], value: int) -> Tensor:
        """Rows to one tensor, padded on the right with `value`."""
        longest = max(map(len, rows), default=0)
        padded = [row + [value] * (longest - len(row)) for row in rows]
        return self._to_device(torch.tensor(padded, dtype=torch.long).reshape(len(rows), longest))

    def _to_device(self, made: Tensor) -> Tensor:
        """Copies what was made on the CPU without waiting for the device."""
        if self.device.type != "cuda":
            return made.to(self.device)
        return made.pin_memory().to(self.device, non_blocking=True)

    def _loss(self, hidden_BSD: Tensor, labels: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Summed loss of hidden states at the positions that have a label, and their number.

        The labels are lists, so their positions are known without asking the device.
        """
        size = hidden_BSD.shape[1]
        places = [
            (row * size + place, label)
            for row, line in enumerate(labels)
            for place, label in enumerate(line)
            if label != IGNORED
        ]
        where_N, targets_N = self._to_device(
            torch.tensor(places, dtype=torch.long).reshape(-1, 2).T.contiguous()
        )
        hidden_ND = hidden_BSD.flatten(0, 1).index_select(0, where_N)
        head = self.model.get_output_embeddings()
        count = torch.full((), len(places), dtype=torch.float32, device=self.device)
        if not isinstance(head, nn.Linear):
            return losses.token_loss(head(hidden_ND), targets_N), count
        return losses.head_loss(hidden_ND, head.weight, head.bias, targets_N), count

    def _loss_of_logits(self, logits_BSV: Tensor, labels_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The same of logits that the model made itself."""
        total = losses.token_loss(logits_BSV.flatten(0, 1), labels_BS.flatten())
        return total, (labels_BS != IGNORED).sum()

    def _inputs(self, prompts_BQD: Tensor | None, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, S, D) of [queries][text][padding] and their attention mask (B, S); with a
        chat template the text up to the user's words stands in front of the queries.
        """
        ids_BL = self._pad(ids, self.form.pad)
        mask_BL = self._pad([[1] * len(row) for row in ids], 0)
        text_BLD = self.embed(ids_BL)
        if prompts_BQD is None:
            return text_BLD, mask_BL
        if prompts_BQD.shape[0] != len(ids):
            raise ValueError(
                f"{prompts_BQD.shape[0]} visual prompts for {len(ids)} texts: one each is needed."
            )
        head = len(self.form.chat.head) if self.form.chat else 0
        visual_BQD = prompts_BQD.to(text_BLD.dtype)
        inputs_BSD = torch.cat((text_BLD[:, :head], visual_BQD, text_BLD[:, head:]), 1)
        return inputs_BSD, F.pad(mask_BL, (prompts_BQD.shape[1], 0), value=1)

    def _decode(self, ids_BL: Tensor, one_line: bool) -> list[str]:
        texts = self.tokenizer.batch_decode(ids_BL, skip_special_tokens=True)
        texts = [text.strip() for text in texts]
        return [text.partition("\n")[0].strip() for text in texts] if one_line else texts

    def _check_length(self, tokens: int) -> None:
        if self.max_positions is not None and tokens > self.max_positions:
            raise ValueError(
                f"{tokens} positions (queries, prompt and text) but the language model has "
                f"{self.max_positions}: shorten the text or generate fewer tokens."
            )


class DecoderLM(_Frozen):
    """A causal language model, OPT first of all.

    Training: [queries][prompt][caption end][padding]; generation: [padding][queries][prompt], the
        queries next to the text. The end is OPT's end of the line, another model's own end token.
    As in the reference, OPT's begin-of-sequence token is a target too, unless a text prompt holds
    it; another model's is given.
    """

    def token_losses(
        self,
        prompts_BQD: Tensor | None,
        texts: list[str],
        uniform_B: Tensor | None = None,
        prompt_texts: list[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Summed loss on caption + end, and the number of these tokens."""
        given, targets = self._rows(texts, uniform_B, prompt_texts)
        inputs_BSD, mask_BS = self._inputs(
            prompts_BQD, [a + b for a, b in zip(given, targets, strict=True)]
        )
        self._check_length(inputs_BSD.shape[1])
        queries = 0 if prompts_BQD is None else prompts_BQD.shape[1]
        ignored = [[IGNORED] * (queries + len(row)) for row in given]
        # Position i says what stands at i + 1.
        labels = [(a + b)[1:] for a, b in zip(ignored, targets, strict=True)]
        if self._body is not None:
            # Padding comes last, where no target sees it: without a mask the model need not ask
            # the device what is in it, and takes its fastest attention.
            hidden_BSD = self._body(inputs_embeds=inputs_BSD, use_cache=False).last_hidden_state
            return self._loss(hidden_BSD, labels)
        logits_BSV = self.model(inputs_embeds=inputs_BSD, attention_mask=mask_BS).logits
        return self._loss_of_logits(logits_BSV[:, :-1], self._pad(labels, IGNORED))

    @torch.no_grad()
    def generate(
        self, prompts_BQD: Tensor | None, prompts_text: list[str], settings: GenerationSettings
    ) -> list[str]:
        """Continues each prompt up to the end of its text: of the line under the reference's rules.

        Args:
            prompts_BQD: Soft visual prompts, one a text; None for text alone.
            prompts_text: Text after the visual prompt, may be empty.
            settings: Beams, lengths, penalties.
        """
        if not prompts_text:
            return []
        given = self._given(prompts_text, prompts_BQD is not None)
        inputs_BSD, mask_BS = self._inputs(prompts_BQD, given)
        if not inputs_BSD.shape[1]:
            raise ValueError("nothing to continue: give a visual prompt or a text prompt.")
        self._check_length(inputs_BSD.shape[1] + settings.max_new_tokens)
        inputs_BSD, mask_BS = pad_left(inputs_BSD, mask_BS)
        ids_BL = self.model.generate(
            inputs_embeds=inputs_BSD,
            attention_mask=mask_BS,
            eos_token_id=self.form.stops,
            pad_token_id=self.form.pad,
            **settings.arguments(),
        )
        return self._decode(ids_BL, self.form.reference or settings.one_line)

    def _rows(
        self, texts: list[str], uniform_B: Tensor | None, prompt_texts: list[str] | None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Long targets are cut but keep their end; nothing is drawn."""
        texts = [text.strip() for text in texts]
        if prompt_texts is None and self.form.reference:
            given: list[list[int]] = [[] for _ in texts]
            targets = self._ids(texts, special=True)
            targets = [_without_end(row, self.tokenizer.eos_token_id) for row in targets]
        else:
            asked = prompt_texts or [""] * len(texts)
            given = self._given(asked, pictured=True)
            joints = [self._joint(prompt) for prompt in asked]
            targets = self._ids([a + b for a, b in zip(joints, texts, strict=True)], special=False)
        return given, [[*row[: self.max_text - 1], self.form.end] for row in targets]

    def _given(self, prompts: list[str], pictured: bool) -> list[list[int]]:
        """Token ids of prompts, as they stand in front of what is said.

        Args:
            pictured: whether visual prompts stand in front of the text.
        """
        chat = self.form.chat
        if chat is not None:
            line = "\n" if pictured else ""
            written = [
                (line + text.strip() if text.strip() else "") + chat.tail for text in prompts
            ]
            return [chat.head + row for row in self._ids(written, special=False)]
        if self.form.reference:
            return self._ids(prompts, special=True)
        return [self.form.begin + row for row in self._ids(prompts, special=False)]

    def _joint(self, prompt: str) -> str:
        """What stands between a prompt and what follows it."""
        if self.form.chat is not None:
            return self.form.chat.joint
        return "" if prompt.endswith((" ", "\n")) or not prompt else " "


class EncoderDecoderLM(_Frozen):
    """An encoder-decoder language model, FlanT5 first of all: queries and prompt to the encoder,
    text from the decoder.
    """

    def token_losses(
        self,
        prompts_BQD: Tensor | None,
        texts: list[str],
        uniform_B: Tensor | None = None,
        prompt_texts: list[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Summed loss on the suffix (or, after `prompt_texts`, on the whole text) and its number
        of tokens.

        Without `prompt_texts` this is the prefix LM of pre-training: each text is split at random
        by `split_prefix`.
        """
        given, labels = self._rows(texts, uniform_B, prompt_texts)
        inputs_BSD, mask_BS = self._inputs(prompts_BQD, given)
        labels_BL = self._pad(labels, IGNORED)
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
        if getattr(self.model.config, "scale_decoder_outputs", False):
            hidden_BLD = hidden_BLD * self.model.config.d_model**-0.5
        return self._loss(hidden_BLD, labels)

    @torch.no_grad()
    def generate(
        self, prompts_BQD: Tensor | None, prompts_text: list[str], settings: GenerationSettings
    ) -> list[str]:
        """Text for each prompt, up to the end-of-sequence token; arguments as for
        `DecoderLM.generate`.
        """
        if not prompts_text:
            return []
        inputs_BSD, mask_BS = self._inputs(prompts_BQD, self._ids(prompts_text, special=True))
        self._check_length(max(inputs_BSD.shape[1], settings.max_new_tokens))
        ids_BL = self.model.generate(
            inputs_embeds=inputs_BSD, attention_mask=mask_BS, **settings.arguments()
        )
        return self._decode(ids_BL, settings.one_line)

    def _rows(
        self, texts: list[str], uniform_B: Tensor | None, prompt_texts: list[str] | None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Both end with the end-of-sequence token, but for a prompt that has its own; both begin
        with what the tokenizer puts in front of a text (BART's does).
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
            given = self._ids(prompt_texts, special=True)
        return given, [[*begin, *row, end] for row in ids]

    def _shifted(self, labels_BL: Tensor) -> Tensor:
        """What the decoder reads: the labels one position late."""
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
    """Where to split each text of the prefix LM (section 3.3): uniform from 1 to the middle, 0 for
    a single token.

    Args:
        lengths_B: Tokens a text, int64.
        uniform_B: Numbers in [0, 1), one a text; None draws them.
    """
    if uniform_B is None:
        uniform_B = torch.rand(lengths_B.shape, dtype=torch.float64)
    middle_B = lengths_B // 2
    return torch.where(middle_B > 0, 1 + (uniform_B * middle_B).long(), torch.zeros_like(middle_B))


def pad_left(inputs_BSD: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Turns rows that are padded on the right until the padding is in front; queries stay next to
    the text.
    """
    size = mask_BS.shape[1]
    padding_B1 = size - mask_BS.sum(1, keepdim=True)
    index_BS = (torch.arange(size, device=mask_BS.device)[None] - padding_B1) % size
    turned_BSD = inputs_BSD.gather(1, index_BS[..., None].expand_as(inputs_BSD))
    return turned_BSD, mask_BS.gather(1, index_BS)


def _additive(mask_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask (B, 1, 1, S) as models add it to attention scores; they take it as it is, where they
    would ask the device what is in one of ones and zeros.
    """
    return (1 - mask_BS.to(dtype))[:, None, None] * torch.finfo(dtype).min


def _without_end(row: list[int], end: int | None) -> list[int]:
    """A row without the end-of-sequence token that some tokenizers append (OPT's stands in front,
    and stays).
    """
    return row[:-1] if len(row) > 1 and row[-1] == end else row
