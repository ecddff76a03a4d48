"""Readers of candidates: a prompt goes through the language model once, trees of tokens follow it.

A tree is one sequence of nodes for the model. Its attention mask lets each node see the prompt and
the nodes on its way to the root, and its positions are depths, so that every branch is read as if
it stood alone behind the prompt. A model for which mask and positions do not say this (ALiBi,
recurrent layers, BART's positions) can read lines only, which are trees without branches.

Shapes: see `modeling`; S prompt (queries and text), R trees of a batch, N nodes of a tree, X width
of the output: the model's width where its logits are one matrix times its hidden states, else V.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from modeling.language.adapters import DecoderLM, EncoderDecoderLM
from modeling.language.trie import Trie, stack_nodes


class Reader(Protocol):
    """Some prompts, which were read, and what the model says about trees behind them.

    Attributes:
        lengths: Positions of each prompt.
    """

    lengths: list[int]

    def outputs(self, rows: Sequence[int], tries: Sequence[Trie], branched: bool) -> Tensor:
        """Outputs (R, N, X) that predict what follows each node; arbitrary at padding.

        Args:
            rows: Prompt of each tree.
            tries: Trees.
            branched: Whether the nodes are read as a tree; else as a line, in their order.
        """
        ...


def make_reader(
    language: DecoderLM | EncoderDecoderLM, prompts_BQD: Tensor | None, prompts_text: list[str]
) -> Reader:
    """The reader of a language model's family; arguments are those of `DecoderLM.generate`."""
    if isinstance(language, DecoderLM):
        return DecoderReader(language, prompts_BQD, prompts_text)
    return EncoderDecoderReader(language, prompts_BQD, prompts_text)


def takes_branches(language: DecoderLM | EncoderDecoderLM) -> bool:
    """Whether a model takes masks and positions of trees at all; a try shows whether it obeys."""
    config, model = language.model.config.get_text_config(), language.model
    if getattr(config, "_attn_implementation", "eager") not in ("eager", "sdpa"):
        return False
    if isinstance(language, EncoderDecoderLM):
        return bool(_relative_parts(model.get_decoder()))
    known = signature(model.base_model.forward).parameters
    recurrent = getattr(model, "_is_stateful", False)
    return not recurrent and {"position_ids", "past_key_values"} <= known.keys()


def window_of(language: DecoderLM | EncoderDecoderLM) -> float:
    """Positions that every layer sees; the tree's mask does not narrow the view further."""
    config = language.model.config.get_text_config()
    named = ("sliding_window", "attention_chunk_size")
    found = [getattr(config, name, None) for name in named]
    return min((size for size in found if isinstance(size, int) and size > 0), default=torch.inf)


class DecoderReader:
    """A decoder: the keys and values of the prompts are kept, and trees read behind them.

    The last position of a prompt is the root of its trees, and is read with them.
    """

    def __init__(
        self, language: DecoderLM, prompts_BQD: Tensor | None, prompts_text: list[str]
    ) -> None:
        """Arguments are those of `DecoderLM.generate`.

        Raises:
            ValueError: A prompt is empty.
        """
        given = language._given(prompts_text, prompts_BQD is not None)
        queries = 0 if prompts_BQD is None else prompts_BQD.shape[1]
        self.lengths = [queries + len(row) for row in given]
        if min(self.lengths) < 1:
            raise ValueError("nothing to continue: give a visual prompt or a text prompt.")
        self._language = language
        self._inputs_BSD, _ = language._inputs(prompts_BQD, given)

    def outputs(self, rows: Sequence[int], tries: Sequence[Trie], branched: bool) -> Tensor:
        """See `Reader`."""
        return self._tree_outputs(rows, tries) if branched else self._line_outputs(rows, tries)

    def _tree_outputs(self, rows: Sequence[int], tries: Sequence[Trie]) -> Tensor:
        nodes = stack_nodes(tries)
        rows_R, last_R = torch.tensor(rows), self._last(rows)
        keys = self._inputs_BSD.shape[1] - 1
        seen_RS = torch.arange(keys) < last_R[:, None]
        size = nodes.tokens_RN.shape[1]
        mask_RNK = torch.cat((seen_RS[:, None].expand(-1, size, -1), nodes.sees_RNN), 2)
        rows_R, last_R, tokens_RN, positions_RN, mask_RNK = map(
            self._language._to_device,
            (rows_R, last_R, nodes.tokens_RN, last_R[:, None] + nodes.depths_RN, mask_RNK),
        )
        inputs_RND = self._language.embed(tokens_RN)
        inputs_RND[:, 0] = self._inputs_BSD[rows_R, last_R]
        past = DynamicCache()
        layer: Any
        for index, layer in enumerate(self._past.layers):
            past.update(layer.keys[rows_R], layer.values[rows_R], index)
        return self._run(
            inputs_embeds=inputs_RND,
            attention_mask=additive(mask_RNK, inputs_RND.dtype),
            position_ids=positions_RN,
            past_key_values=past,
            use_cache=True,
        )

    def _line_outputs(self, rows: Sequence[int], tries: Sequence[Trie]) -> Tensor:
        nodes, last_R = stack_nodes(tries), self._last(rows)
        tokens_RN, last_R = map(self._language._to_device, (nodes.tokens_RN, last_R))
        texts_RND = self._language.embed(tokens_RN)
        lines = [
            torch.cat((self._inputs_BSD[row, : self.lengths[row]], text_ND[1 : len(trie)]))
            for row, text_ND, trie in zip(rows, texts_RND, tries, strict=True)
        ]
        # Padding comes last, where no node sees it.
        found = self._run(inputs_embeds=pad_sequence(lines, batch_first=True), use_cache=False)
        at_RN = last_R[:, None] + torch.arange(tokens_RN.shape[1], device=last_R.device)
        at_RN = at_RN.clamp(max=found.shape[1] - 1)
        return found.gather(1, at_RN[..., None].expand(-1, -1, found.shape[2]))

    @cached_property
    def _past(self) -> DynamicCache:
        """Keys and values of the prompts without their last positions.

        Padding stands behind a prompt, where no position of it looks; trees are masked from it.
        """
        past, before_BSD = DynamicCache(), self._inputs_BSD[:, :-1]
        if before_BSD.shape[1]:
            body = self._language._body or self._language.model.base_model
            body(inputs_embeds=before_BSD, past_key_values=past, use_cache=True)
        return past

    def _last(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor([self.lengths[row] - 1 for row in rows])

    def _run(self, **given: Any) -> Tensor:
        if self._language._body is not None:
            return self._language._body(**given).last_hidden_state
        return self._language.model(**given).logits


class EncoderDecoderReader:
    """An encoder-decoder: the encoder reads the prompts once, the decoder the trees."""

    def __init__(
        self, language: EncoderDecoderLM, prompts_BQD: Tensor | None, prompts_text: list[str]
    ) -> None:
        """Arguments are those of `DecoderLM.generate`."""
        given = language._given(prompts_text)
        queries = 0 if prompts_BQD is None else prompts_BQD.shape[1]
        self.lengths = [queries + len(row) for row in given]
        self._language = language
        inputs_BSD, self._mask_BS = language._inputs(prompts_BQD, given)
        self._encoded_BSD = language.model.get_encoder()(
            inputs_embeds=inputs_BSD, attention_mask=self._mask_BS
        ).last_hidden_state

    def outputs(self, rows: Sequence[int], tries: Sequence[Trie], branched: bool) -> Tensor:
        """See `Reader`."""
        language, model, nodes = self._language, self._language.model, stack_nodes(tries)
        nodes.tokens_RN[:, 0] = model.config.decoder_start_token_id
        rows_R, tokens_RN = map(language._to_device, (torch.tensor(rows), nodes.tokens_RN))
        encoded_RSD, mask_RS = self._encoded_BSD[rows_R], self._mask_BS[rows_R]
        sees, parts = None, []
        if branched:
            sees = additive(language._to_device(nodes.sees_RNN), encoded_RSD.dtype)
            parts = _relative_parts(model.get_decoder())
        with _positions_are_depths(parts, nodes.depths_RN):
            if language._body is None:
                return model(
                    encoder_outputs=BaseModelOutput(last_hidden_state=encoded_RSD),
                    attention_mask=mask_RS,
                    decoder_input_ids=tokens_RN,
                    decoder_attention_mask=sees,
                    use_cache=False,
                ).logits
            hidden_RND = model.get_decoder()(
                input_ids=tokens_RN,
                attention_mask=sees,
                encoder_hidden_states=encoded_RSD,
                encoder_attention_mask=mask_RS,
                use_cache=False,
            ).last_hidden_state
        return language._scaled(hidden_RND)


def additive(mask_RNK: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask (R, 1, N, K) that models add to attention scores."""
    made = torch.zeros(mask_RNK.shape, dtype=dtype, device=mask_RNK.device)
    return made.masked_fill_(~mask_RNK, torch.finfo(dtype).min)[:, None]


def _relative_parts(decoder: Any) -> list[Any]:
    """The attention layers of a decoder that make a bias from relative positions, as T5's do."""
    return [
        part
        for part in decoder.modules()
        if getattr(part, "has_relative_attention_bias", False) and hasattr(part, "compute_bias")
    ]


@contextmanager
def _positions_are_depths(parts: Sequence[Any], depths_RN: Tensor) -> Iterator[None]:
    """Inside, relative positions are differences of depths."""
    deepest = int(depths_RN.max()) + 1
    for part in parts:
        depths = depths_RN.to(part.relative_attention_bias.weight.device)
        table_HLL = part.compute_bias(deepest, deepest)[0]
        bias_HRNN = table_HLL[:, depths[:, :, None], depths[:, None, :]]
        bias_RHNN = bias_HRNN.transpose(0, 1).contiguous()
        part.compute_bias = lambda *_, made=bias_RHNN, **__: made
    try:
        yield
    finally:
        for part in parts:
            del part.compute_bias
