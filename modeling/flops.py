"""FLOPs and activations of a training step by formula, for utilisation and for planning.

The matrix products that the implementation computes are counted, at two FLOPs for a multiplication;
nothing else is (as in torch's FlopCounter), and recomputation is not. All counts are for one
sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from modeling.blip2 import Stage1Config, Stage2Config
from modeling.qformer import QFormerConfig


@dataclass(frozen=True)
class Work:
    """FLOPs of a forward pass: products with weights, and products of activations."""

    weights: float = 0.0
    activations: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.weights + other.weights, self.activations + other.activations)

    def __mul__(self, times: float) -> Work:
        return Work(times * self.weights, times * self.activations)

    @property
    def forward(self) -> float:
        """FLOPs without a backward pass: a frozen encoder."""
        return self.weights + self.activations

    @property
    def trained(self) -> float:
        """FLOPs of forward and backward with gradients of inputs and weights."""
        return 3 * self.forward

    @property
    def through(self) -> float:
        """FLOPs of forward and backward of frozen weights, through which gradients pass."""
        return 2 * self.weights + 3 * self.activations


@dataclass(frozen=True)
class Stack:
    """Sizes of a stack of transformer blocks.

    Attributes:
        width: width of the hidden states.
        blocks: number of blocks.
        mlp: width of the MLP's hidden layer.
        inner: width of all attention heads together.
        shared: width of keys and of values, less than ``inner`` where heads share them.
        gated: whether the MLP has a second input matrix.
    """

    width: int
    blocks: int
    mlp: int
    inner: int
    shared: int
    gated: bool = False

    def run(self, tokens: float, keys: float | None = None) -> Work:
        """Forward pass of all blocks on a sequence.

        Args:
            tokens: Tokens of the sequence.
            keys: Keys that each of them attends to; None: the sequence's own.
        """
        attention = 2 * self.width * (self.inner + self.shared)
        mlp = (3 if self.gated else 2) * self.width * self.mlp
        seen = tokens if keys is None else keys
        return Work(
            2 * tokens * self.blocks * (attention + mlp),
            4 * tokens * seen * self.inner * self.blocks,
        )

    def cross(self, tokens: float, keys: float) -> Work:
        """Cross-attention of all blocks, from `tokens` tokens to `keys` of another sequence."""
        query, source = 2 * self.width * self.inner, 2 * self.width * self.shared
        weights = 2 * self.blocks * (tokens * query + keys * source)
        return Work(weights, 4 * tokens * keys * self.inner * self.blocks)

    def saved(self, tokens: float, trained: bool) -> float:
        """Activations that the backward pass needs, in elements, where attention is fused.

        A frozen block saves the inputs of its norms, of its activation and of its attention; one
        that trains also the inputs of its matrices.
        """
        qkv = self.inner + 2 * self.shared
        mlp = (3 if self.gated else 1) * self.mlp
        kept = 2 * self.width + qkv + self.inner + mlp
        if trained:
            kept += 2 * self.width + self.mlp
        return tokens * self.blocks * kept


@dataclass(frozen=True)
class VitSizes:
    """Sizes of an image encoder as it is built, without the blocks that are not used.

    Attributes:
        stack: its blocks.
        tokens: tokens of an image, special ones included.
        patch: side of a patch in pixels.
    """

    stack: Stack
    tokens: int
    patch: int


def vit_sizes(vit: Any) -> VitSizes:
    """Sizes of a timm VisionTransformer or Eva."""
    mlp = vit.blocks[0].mlp
    # A SwiGLU's gate is a layer of its own, or the other half of the first one.
    gated = hasattr(mlp, "fc1_g") or mlp.fc1.out_features == 2 * mlp.fc2.in_features
    inner = vit.blocks[0].attn.proj.in_features
    stack = Stack(
        width=vit.embed_dim,
        blocks=len(vit.blocks),
        mlp=mlp.fc2.in_features,
        inner=inner,
        shared=inner,
        gated=gated,
    )
    tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens
    return VitSizes(stack, tokens, vit.patch_embed.patch_size[0])


def vit_flops(sizes: VitSizes, trained: bool) -> float:
    """FLOPs of the image encoder for one image, with a backward pass where it trains."""
    patches = 2 * (sizes.tokens - 1) * sizes.stack.width * 3 * sizes.patch**2
    blocks = sizes.stack.run(sizes.tokens)
    if not trained:
        return patches + blocks.forward
    return 2 * patches + blocks.trained  # images get no gradient


# ------------------------------------------------------------------------------- Q-Former


def project_work(config: QFormerConfig, image_tokens: int, learned: bool = False) -> Work:
    """Keys and values of one image for all layers with cross-attention.

    Args:
        config: Sizes of the Q-Former.
        image_tokens: Tokens of the image.
        learned: Whether the image tokens have a gradient (their encoder trains), which takes a
            third of the work with weights.
    """
    layers = -(-config.layers // config.cross_every)
    work = Work(4 * layers * image_tokens * config.encoder_width * config.width)
    return work if learned else work * (2 / 3)


def pass_work(
    config: QFormerConfig,
    *,
    queries: int = 0,
    text: int = 0,
    image_tokens: int = 0,
    past: int = 0,
    last: int | None = None,
) -> Work:
    """One pass of the Q-Former over queries and text, with given keys and values of the image.

    Args:
        config: Sizes of the Q-Former.
        queries: Queries in the sequence.
        text: Text tokens in the sequence.
        image_tokens: Keys of the image.
        past: Self-attention keys that come from an earlier pass.
        last: Positions that the last layer computes; None: all.
    """
    rows, width = queries + text, config.width
    cross = Work(4 * queries * width**2, 4 * queries * image_tokens * width)
    total = cross * -(-config.layers // config.cross_every)
    for index in range(config.layers):
        kept = last if last is not None and index == config.layers - 1 else rows
        weights = 4 * (rows + kept) * width**2 + 4 * kept * width * config.ffn
        total += Work(weights, 4 * kept * (rows + past) * width)
    return total


def stage1_work(
    config: Stage1Config,
    image_tokens: int,
    text: int,
    batch: int = 1,
    world: int = 1,
    *,
    learned: bool = False,
) -> dict[str, Work]:
    """Work of ITC, ITM and ITG for one sample, by part.

    Args:
        config: Sizes of stage 1.
        image_tokens: Tokens of an image.
        text: Text tokens, padding included.
        batch: Samples of all ranks; each image is compared with all texts, each text with all
            images.
        world: Number of ranks; with several, most negatives come from other ranks, and their images
            are projected once more.
        learned: Whether the image encoder trains.
    """
    qformer, queries = config.qformer, config.qformer.queries
    width, image = qformer.width, project_work(qformer, image_tokens, learned)
    itc_image = pass_work(qformer, queries=queries, image_tokens=image_tokens)
    itc_text = pass_work(qformer, text=text, last=1)
    heads = Work(2 * (queries + 1) * width * config.embed)
    # Only the local side of a similarity has a gradient: the other counts as frozen weights.
    similarities = Work(2 * 2 * batch * queries * config.embed) * (2 / 3)
    pair = pass_work(
        qformer, queries=queries, text=text, image_tokens=image_tokens, last=queries
    ) + Work(4 * queries * width)
    parts = {
        "image keys and values": image * (1 + (1 - 1 / world)),
        "itc": itc_image + itc_text + heads + similarities,
        "itm": pair * 3,
    }
    if config.itg:
        said = text - 1  # nothing follows the last token
        head = Work(2 * said * width * (width + qformer.vocab))
        parts["itg"] = pass_work(qformer, text=said, past=queries) + head
    return parts


def stage2_work(
    config: Stage2Config, image_tokens: int, question: int = 0, *, learned: bool = False
) -> Work:
    """Work of stage 2 for one sample, without its language model.

    Args:
        config: Sizes of stage 2.
        image_tokens: Tokens of an image.
        question: Text tokens that the Q-Former reads.
        learned: Whether the image encoder trains.
    """
    qformer, queries = config.qformer, config.qformer.queries
    total = project_work(qformer, image_tokens, learned)
    total += pass_work(
        qformer,
        queries=queries,
        text=question,
        image_tokens=image_tokens,
        last=queries if question else None,
    )
    return total + Work(2 * queries * qformer.width * config.llm_width)


# ------------------------------------------------------------------------- language models


@dataclass(frozen=True)
class LanguageSizes:
    """Sizes of a frozen language model.

    Attributes:
        decoder: blocks of the decoder.
        vocab: rows of the output matrix.
        head_width: width of the input of the output matrix.
        encoder: blocks of the encoder; None for a decoder alone.
    """

    decoder: Stack
    vocab: int
    head_width: int
    encoder: Stack | None = None

    @property
    def projected(self) -> bool:
        """Whether embeddings and hidden states differ in width (OPT-350M)."""
        return self.head_width != self.decoder.width


def language_sizes(config: Any) -> LanguageSizes:
    """Sizes from a transformers configuration: OPT, T5, and what resembles LLaMA or GPT."""
    if config.is_encoder_decoder and hasattr(config, "d_kv"):
        inner = config.num_heads * config.d_kv
        gated = bool(getattr(config, "is_gated_act", False))
        encoder = Stack(
            width=config.d_model,
            blocks=config.num_layers,
            mlp=config.d_ff,
            inner=inner,
            shared=inner,
            gated=gated,
        )
        decoder = replace(encoder, blocks=config.num_decoder_layers)
        return LanguageSizes(decoder, config.vocab_size, config.d_model, encoder)
    width, heads = config.hidden_size, config.num_attention_heads
    mlp = getattr(config, "ffn_dim", None) or getattr(config, "intermediate_size", None)
    per_head = getattr(config, "head_dim", None) or width // heads
    shared = (getattr(config, "num_key_value_heads", None) or heads) * per_head
    gated = config.model_type in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3")
    layers = config.num_hidden_layers
    stack = Stack(
        width=width,
        blocks=layers,
        mlp=mlp or 4 * width,
        inner=heads * per_head,
        shared=shared,
        gated=gated,
    )
    head = getattr(config, "word_embed_proj_dim", None) or width
    pair = stack if config.is_encoder_decoder else None
    return LanguageSizes(stack, config.vocab_size, head, pair)


def language_flops(
    sizes: LanguageSizes, given: float, targets: float, *, learned: bool = False
) -> float:
    """FLOPs of a language model, forward and backward.

    Args:
        sizes: Sizes of the language model.
        given: Tokens that are not targets: queries, prompt, prefix.
        targets: Tokens that are targets.
        learned: Whether a decoder's weights get gradients too; else only its inputs do.
    """
    head = Work(2 * targets * sizes.head_width * sizes.vocab)
    if sizes.encoder is None:
        body = sizes.decoder.run(given + targets)
        if sizes.projected:
            both = 2 * (given + targets) * sizes.decoder.width * sizes.head_width
            body += Work(both)
        return (body + head).trained if learned else (body + head).through
    decoder = sizes.decoder
    body = sizes.encoder.run(given) + decoder.run(targets) + decoder.cross(targets, given) + head
    # In front of the decoder's first cross-attention no gradient leads back to the image.
    first = Work(
        2 * targets * decoder.width * (3 * decoder.inner + 2 * decoder.shared),
        2 * 4 * targets**2 * decoder.inner / 2,
    )
    return body.through - first.weights - 2 * first.activations


def split_text(text: int) -> tuple[float, float]:
    """Mean tokens of prefix and suffix of the prefix LM (section 3.3), each with its end token.

    Args:
        text: Tokens of a whole text with one end token.
    """
    plain = text - 1
    prefix = (1 + plain // 2) / 2
    return prefix + 1, plain - prefix + 1
