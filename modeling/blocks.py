"""The Q-Former's sizes and its blocks: BERT's attention and feed-forward network, and a layer.

Shapes: see `modeling`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.dropout import Dropout, dropout
from modeling.linear import Linear, linear

KeyValue = tuple[Tensor, ...]
"""Keys and values (B, H, tokens, K); several pairs are several batches, one after the other."""


@dataclass(frozen=True)
class QFormerConfig:
    """Sizes of the Q-Former; the defaults are the paper's (BERT-base, 32 queries, ViT-g).

    Attributes:
        width: width of the hidden states.
        layers: number of layers.
        heads: attention heads.
        ffn: width of the feed-forward networks' hidden layer.
        queries: number of query tokens.
        cross_every: distance of layers with cross-attention; 2: layers 0, 2, 4, ...
        encoder_width: width of the image tokens.
        vocab: rows of the word embedding; 30523 is BERT's vocabulary and [DEC].
        max_positions: largest number of text tokens.
        dropout: dropout of hidden states.
        eps: epsilon of the norms.
        text: whether there are text embeddings and text feed-forward networks; stage 2 has none
            unless its Q-Former reads text.
        attention_dropout: dropout of attention probabilities; None: the same as `dropout`.
        init_std: standard deviation of all weights that are not initialised from BERT.
    """

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
    text: bool = True
    attention_dropout: float | None = None
    init_std: float = 0.02

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
        """Keys and values of a source, split into heads.

        Args:
            source_BSD: Source of the keys and values; without `norm`'s weight and bias, which are
                multiplied into the projections, where a norm is given.
            norm: A LayerNorm behind the source.
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
        """Attends from `x_BSD` to projected keys and values.

        Args:
            x_BSD: Hidden states.
            key_value: Keys and values, from `project`.
            mask: (B, 1, S, keys), True where attention is allowed.
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
    """BERT's feed-forward network with residual and post-LayerNorm; GELU in the erf form."""

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
    """Positions of a batch's text that are not padding, so that padding need not be fed forward.

    Attributes:
        length: Text length L, padding included.
        among_all_N: Flat positions of the N real tokens among the B x S of queries and text.
        among_text_N: Flat positions of the same tokens among the B x L of the text.
    """

    length: int
    among_all_N: Tensor
    among_text_N: Tensor

    def gather(self, x_BSD: Tensor) -> Tensor:
        """The real tokens (N, D)."""
        return x_BSD.flatten(0, 1).index_select(0, self.among_all_N)

    def scatter(self, x_ND: Tensor, batch: int) -> Tensor:
        """The text (B, L, D), with zeros for padding, to which nothing attends."""
        text = x_ND.new_zeros(batch * self.length, x_ND.shape[1])
        return text.index_copy_(0, self.among_text_N, x_ND).unflatten(0, (batch, self.length))


def real_text(mask_BL: Tensor, queries: int) -> RealText | None:
    """Positions of real text tokens.

    None where there is no padding, and on devices other than the CPU: to learn the positions, the
    host would have to wait for the device.
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
    """One layer: self-attention over queries and text, cross-attention of the queries, two FFNs.

    Every second layer has cross-attention. Queries and text have a feed-forward network each.
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
        """Hidden states after this layer.

        Args:
            x_BSD: Hidden states, queries first.
            queries: Number of queries in the sequence; 0 for text alone.
            mask: (B, 1, S, past + S), True where attention is allowed.
            image: Keys and values of the images, for layers with cross-attention.
            past: Self-attention keys and values in front of this sequence's own.
            keep: Number of leading positions that are computed; None: all. The last layer's others
                are not needed.
            text: Positions of the text that are not padding; None feeds all of it forward.

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


def init_bert(module: nn.Module, std: float = 0.02) -> None:
    """BERT's initialisation: N(0, std) weights, zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
