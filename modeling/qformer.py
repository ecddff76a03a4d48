"""The Q-Former (paper, section 3.1): BERT blocks shared by learned queries and text,
cross-attention to the image.

Legend: B images, R rows of image–text pairs, Q queries, L text tokens, S = Q + L, P image tokens,
    D width, H heads, K head width,
V vocabulary. Queries come first in every sequence. Names map one to one to LAVIS's and Hugging
Face's (`weights.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling import losses
from modeling.dropout import Dropout, dropout
from modeling.linear import Linear, linear
from modeling.masks import contrastive_mask, generation_mask, matching_mask

# (B, H, tokens, K) each. Several pairs of them are several batches of images, one after the other.
KeyValue = tuple[Tensor, ...]


@dataclass(frozen=True)
class QFormerConfig:
    """Sizes of the Q-Former; the defaults are the paper's (BERT-base, 32 queries, ViT-g)."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    queries: int = 32
    cross_every: int = 2
    encoder_width: int = 1408
    vocab: int = 30523
    max_positions: int = 512
    dropout: float = 0.1
    eps: float = 1e-12
    text: bool = True  # False builds no text embeddings and no text FFN (stage 2)
    attention_dropout: float | None = None  # None: the same as `dropout`
    init_std: float = 0.02  # of all weights that do not come from BERT

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(
                f"qformer.heads = {self.heads} must divide qformer.width = {self.width}."
            )
        for field in ("width", "layers", "heads", "ffn", "queries", "cross_every", "encoder_width"):
            if getattr(self, field) < 1:
                raise ValueError(f"qformer.{field} = {getattr(self, field)} must be at least 1.")

    @property
    def attention_drop(self) -> float:
        """Dropout on attention probabilities."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout


class Attention(nn.Module):
    """BERT attention with its output projection, residual and post-LayerNorm."""

    def __init__(self, config: QFormerConfig, source_width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_drop = config.attention_drop
        self.query = Linear(config.width, config.width)
        self.key = Linear(source_width, config.width)
        self.value = Linear(source_width, config.width)
        self.out = Linear(config.width, config.width)
        self.dropout = Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)

    def project(self, source_BSD: Tensor, norm: nn.LayerNorm | None = None) -> KeyValue:
        """Keys and values of a source, split into heads; those of `norm`'s weight and bias applied
        to it, where it is given.
        """
        if norm is None:
            return self._split(self.key(source_BSD)), self._split(self.value(source_BSD))
        projected = []
        for part in (self.key, self.value):
            weight_OD = part.weight.float()
            bias_O = part.bias.float() + weight_OD @ norm.bias.float()
            folded_OD = (weight_OD * norm.weight.float()).to(part.weight.dtype)
            projected.append(self._split(linear(source_BSD, folded_OD, bias_O.to(part.bias.dtype))))
        return tuple(projected)

    def forward(self, x_BSD: Tensor, key_value: KeyValue, mask: Tensor | None = None) -> Tensor:
        """Attends from `x_BSD` to projected keys and values; `mask` is True where attention is
        allowed.
        """
        drop = self.attention_drop if self.training else 0.0
        query_BHSK = self._split(self.query(x_BSD))
        parts = [key_value[i : i + 2] for i in range(0, len(key_value), 2)]
        if len(parts) == 1:
            mixed_BHSK = attend(query_BHSK, key_value, mask, drop)
        else:
            queries = query_BHSK.split([len(key) for key, _ in parts])
            mixed = [attend(q, kv, None, drop) for q, kv in zip(queries, parts, strict=True)]
            mixed_BHSK = torch.cat(mixed)
        out_BSD = self.out(mixed_BHSK.transpose(1, 2).flatten(2))
        return self.norm(self.dropout(out_BSD) + x_BSD)

    def _split(self, x_BSD: Tensor) -> Tensor:
        return x_BSD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def attend(query_BHSK: Tensor, key_value: KeyValue, mask: Tensor | None, drop: float) -> Tensor:
    """Scaled dot-product attention; `mask` is True where attention is allowed."""
    key_BHPK, value_BHPK = key_value
    if query_BHSK.is_cuda or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(
            query_BHSK, key_BHPK, value_BHPK, attn_mask=mask, dropout_p=drop
        )
    # On CPU the fused kernel's backward is slow in bf16: 125 ms against 14 ms
    # (192 pairs of 36 tokens, one core).
    scores_BHSP = (query_BHSK * query_BHSK.shape[-1] ** -0.5) @ key_BHPK.transpose(-1, -2)
    if mask is not None:
        forbidden = torch.zeros_like(mask, dtype=query_BHSK.dtype).masked_fill_(~mask, -torch.inf)
        scores_BHSP += forbidden
    return dropout(scores_BHSP.softmax(-1), drop) @ value_BHPK


class FeedForward(nn.Module):
    """BERT feed-forward with residual and post-LayerNorm; GELU in the erf form."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.up = Linear(config.width, config.ffn)
        self.down = Linear(config.ffn, config.width)
        self.dropout = Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.norm(self.dropout(self.down(F.gelu(self.up(x_BSD)))) + x_BSD)


@dataclass(frozen=True)
class RealText:
    """Where a batch's text is not padding, so that padding need not be fed forward.

    Attributes:
        length: L.
        among_all_N: Flat positions of the N real tokens among the B x S of queries and text.
        among_text_N: The same among the B x L of the text.
    """

    length: int
    among_all_N: Tensor
    among_text_N: Tensor

    def gather(self, x_BSD: Tensor) -> Tensor:
        """The real tokens (N, D)."""
        return x_BSD.flatten(0, 1).index_select(0, self.among_all_N)

    def scatter(self, x_ND: Tensor, batch: int) -> Tensor:
        """The text (B, L, D) with zeros for padding, which nothing attends to."""
        text = x_ND.new_zeros(batch * self.length, x_ND.shape[1])
        return text.index_copy_(0, self.among_text_N, x_ND).unflatten(0, (batch, self.length))


def real_text(mask_BL: Tensor, queries: int) -> RealText | None:
    """Where text is real; None where there is no padding, and on devices that would have to be
    waited for to learn it.
    """
    if mask_BL.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    real_N = mask_BL.flatten().nonzero().squeeze(1)
    if len(real_N) == mask_BL.numel():
        return None
    length = mask_BL.shape[1]
    skipped_N = queries * (real_N // length + 1)
    return RealText(length, real_N + skipped_N, real_N)


class Layer(nn.Module):
    """Self-attention over queries and text; cross-attention (every second layer) and an own FFN
    for the queries.
    """

    def __init__(self, config: QFormerConfig, index: int) -> None:
        super().__init__()
        self.has_cross = index % config.cross_every == 0
        self.self_attn = Attention(config, config.width)
        if self.has_cross:
            self.cross_attn = Attention(config, config.encoder_width)
        self.query_ffn = FeedForward(config)
        if config.text:
            self.text_ffn = FeedForward(config)

    def forward(
        self,
        x_BSD: Tensor,
        queries: int,
        *,
        mask: Tensor | None = None,
        image: KeyValue | None = None,
        past: KeyValue | None = None,
        keep: int | None = None,
        text: RealText | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """One block.

        Args:
            x_BSD: Hidden states, queries first.
            queries: How many of the rows are queries (0 for text alone).
            mask: (B, 1, S, past + S), True where attention is allowed.
            image: Projected image, for the layers that have cross-attention.
            past: Self-attention keys and values that stand before this sequence's own.
            keep: Compute only this many leading rows; the last layer needs no others.
            text: Where the text is not padding; None feeds all of it forward.

        Returns:
            New hidden states and this sequence's own self-attention keys and values.
        """
        own = self.self_attn.project(x_BSD)
        seen = (
            own
            if past is None
            else (torch.cat((past[0], own[0]), 2), torch.cat((past[1], own[1]), 2))
        )
        if keep is not None:
            x_BSD, mask = x_BSD[:, :keep], None if mask is None else mask[:, :, :keep]
        x_BSD = self.self_attn(x_BSD, seen, mask)
        parts = []
        if queries:
            query_BQD = x_BSD[:, :queries]
            if self.has_cross:
                assert image is not None
                query_BQD = self.cross_attn(query_BQD, image)
            parts.append(self.query_ffn(query_BQD))
        if x_BSD.shape[1] > queries or not queries:
            if text is None or keep is not None:
                parts.append(self.text_ffn(x_BSD[:, queries:]))
            else:
                parts.append(text.scatter(self.text_ffn(text.gather(x_BSD)), x_BSD.shape[0]))
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)), own


class QFormer(nn.Module):
    """Learned queries that read an image, alone or together with text.

    An image is projected to keys and values once (`project`), and every pass reads those.
    """

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.query_tokens = nn.Parameter(torch.empty(1, config.queries, config.width))
        if config.text:
            self.word_embeddings = nn.Embedding(config.vocab, config.width)
            self.position_embeddings = nn.Embedding(config.max_positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList([Layer(config, index) for index in range(config.layers)])
        self.apply(partial(init_bert, std=config.init_std))
        nn.init.normal_(self.query_tokens, std=config.init_std)

    def project(self, image_BPD: Tensor, norm: nn.LayerNorm | None = None) -> list[KeyValue]:
        """Keys and values of images for each layer with cross-attention, to be shared by all
        passes.

        Args:
            image_BPD: Image tokens.
            norm: A LayerNorm to apply to them first. Given here rather than applied before, the
                gradient of its weights comes from that of the projections' (they follow one
                another), not from that of the tokens: a third of this product is saved where
                the tokens themselves have no gradient.
        """
        if norm is None:
            return [layer.cross_attn.project(image_BPD) for layer in self._cross_layers()]
        image_BPD = F.layer_norm(image_BPD.float(), norm.normalized_shape, eps=norm.eps)
        image_BPD = image_BPD.to(self.query_tokens.dtype)
        return [layer.cross_attn.project(image_BPD, norm) for layer in self._cross_layers()]

    def encode_image(self, image: list[KeyValue]) -> tuple[Tensor, list[KeyValue]]:
        """Queries alone (ITC, stage 2): output (B, Q, D) and the queries' self-attention keys and
        values per layer.
        """
        x_BQD = self._embed_queries(image[0][0].shape[0])
        cache = []
        for layer, layer_image in zip(self.layers, self._per_layer(image), strict=True):
            x_BQD, own = layer(x_BQD, self.config.queries, image=layer_image)
            cache.append(own)
        return x_BQD, cache

    def encode_text(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Text alone (ITC): the output (B, D) at the first token, [CLS]."""
        mask, text = contrastive_mask(mask_BL, 0), real_text(mask_BL, 0)
        x_BLD = self._embed(self._embed_text(ids_BL))
        for index, layer in enumerate(self.layers):
            last = index == len(self.layers) - 1
            x_BLD, _ = layer(x_BLD, 0, mask=mask, keep=1 if last else None, text=text)
        return x_BLD[:, 0]

    def encode_pair(self, image: list[KeyValue], ids_RL: Tensor, mask_RL: Tensor) -> Tensor:
        """Queries and text that see each other (ITM, instructions): queries' output (R, Q, D)."""
        queries = self.config.queries
        mask, text = matching_mask(mask_RL, queries), real_text(mask_RL, queries)
        text_RLD = self._embed_text(ids_RL)
        query_RQD = self.query_tokens.expand(ids_RL.shape[0], -1, -1)
        x_RSD = self._embed(torch.cat((query_RQD, text_RLD), 1))
        for index, (layer, layer_image) in enumerate(
            zip(self.layers, self._per_layer(image), strict=True)
        ):
            last = index == len(self.layers) - 1
            keep = queries if last else None
            x_RSD, _ = layer(x_RSD, queries, mask=mask, image=layer_image, keep=keep, text=text)
        return x_RSD

    def decode(self, cache: list[KeyValue], ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Text that sees the queries and the text before it (ITG): output (B, L, D).

        The queries do not see text under the causal mask, so their keys and values are those of
        `encode_image`.
        """
        queries = self.config.queries
        mask = generation_mask(mask_BL, queries)[:, :, queries:]
        text = real_text(mask_BL, 0)
        x_BLD = self._embed(self._embed_text(ids_BL))
        for layer, past in zip(self.layers, cache, strict=True):
            x_BLD, _ = layer(x_BLD, 0, mask=mask, past=past, text=text)
        return x_BLD

    def _embed_queries(self, batch: int) -> Tensor:
        return self._embed(self.query_tokens.expand(batch, -1, -1))

    def _embed_text(self, ids_BL: Tensor) -> Tensor:
        length = ids_BL.shape[1]
        if length > self.config.max_positions:
            raise ValueError(
                f"text has {length} tokens but qformer.max_positions = "
                f"{self.config.max_positions}: truncate the text."
            )
        # Positions start at 0 even behind queries, which have none.
        positions_L = torch.arange(length, device=ids_BL.device)
        return self.word_embeddings(ids_BL) + self.position_embeddings(positions_L)

    def _embed(self, x_BSD: Tensor) -> Tensor:
        return self.dropout(self.norm(x_BSD))

    def _cross_layers(self) -> Iterator[Layer]:
        for layer in self.layers:
            assert isinstance(layer, Layer)
            if layer.has_cross:
                yield layer

    def _per_layer(self, image: Sequence[KeyValue]) -> list[KeyValue | None]:
        remaining = iter(image)
        return [next(remaining) if layer.has_cross else None for layer in self.layers]


class LMHead(nn.Module):
    """BERT's prediction head; its output matrix is the word embedding, given in `forward` so that
    it exists once.
    """

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab))
        self.apply(partial(init_bert, std=config.init_std))

    def forward(
        self,
        x_ND: Tensor,
        embeddings_VD: Tensor,
        targets_N: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> Tensor:
        """Logits (N, V), or the summed loss of targets, for which they never stand in memory as a
        whole (`losses.head_loss`).
        """
        hidden_ND = self.norm(F.gelu(self.dense(x_ND)))
        if targets_N is None:
            return linear(hidden_ND, embeddings_VD, self.bias)
        return losses.head_loss(hidden_ND, embeddings_VD, self.bias, targets_N, smoothing=smoothing)


def init_bert(module: nn.Module, std: float = 0.02) -> None:
    """BERT's initialisation: N(0, std) weights, zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def select(image: list[KeyValue], index_R: Tensor) -> list[KeyValue]:
    """Rows of projected images, for pairs that share or exchange images."""
    joined = [
        layer if len(layer) == 2 else (torch.cat(layer[::2]), torch.cat(layer[1::2]))
        for layer in image
    ]
    return [(key.index_select(0, index_R), value.index_select(0, index_R)) for key, value in joined]


def concatenate(*images: list[KeyValue]) -> list[KeyValue]:
    """Joins batches of projected images, without copying them."""
    return [tuple(chain.from_iterable(layer)) for layer in zip(*images, strict=True)]
