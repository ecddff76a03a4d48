"""The small language models' shapes, how their weights start, and the steps that teach them.

The steps were found by trial: a lookup that is asked for alone is learned in 300 steps, among
others in ten times as many or not at all. So each comes alone first – colours and shapes in short
texts, places, relations in easier forms – and captions and everything else after that.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import OPTConfig, PreTrainedTokenizerBase, T5Config

from jobs.zoo_training.corpus import READING_KINDS, Mix


@dataclass(frozen=True)
class Phase:
    """Steps on one mix of tasks."""

    steps: int
    mix: Mix


@dataclass(frozen=True)
class Plan:
    """How one model is trained. ``rate`` is relative to each tensor's RMS where ``scaled``."""

    phases: tuple[Phase, ...]
    rate: float
    scaled: bool
    batch: int = 64
    warmup: int = 100
    clip: float = 1.0
    power: float = 1.0  # a target of n tokens weighs n ** (1 - power) times one of one token

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)


LOOKUP = ("color", "shape")
PLACES = ("color", "shape", "exists", "position", "count")
T5_FIRST = Plan(
    phases=(
        Phase(400, Mix(1.0, 0.0, 0.0, plain=1.0, short=1.0, kinds=LOOKUP)),
        Phase(400, Mix(1.0, 0.0, 0.0, plain=1.0, short=0.3, kinds=PLACES)),
        Phase(500, Mix(0.7, 0.3, 0.1, plain=0.8, short=0.1)),
        Phase(1200, Mix(0.5, 0.4, 0.25)),
    ),
    rate=0.015,
    scaled=True,
)
# Relations step by step (see jobs.zoo_training.corpus.ask), everything else kept in practice.
PLAIN = (*READING_KINDS, *["plain relation"] * 6)
ONE_SIDED = (*READING_KINDS, *["one-sided relation"] * 7, "plain relation")
BOTH = (*READING_KINDS, *["one-sided relation"] * 2, *["relation"] * 5, "compositional")
LAST = (*["compositional"] * 6, "count", "count")
HARD = (*READING_KINDS, "relation", "relation", "compositional")
T5_SECOND = Plan(
    phases=(
        Phase(150, Mix(1.0, 0.0, 0.0, plain=1.0, kinds=PLAIN)),
        Phase(400, Mix(1.0, 0.0, 0.0, plain=1.0, kinds=ONE_SIDED)),
        Phase(550, Mix(0.9, 0.1, 0.1, plain=0.9, kinds=BOTH)),
        Phase(900, Mix(0.5, 0.4, 0.25, kinds=HARD)),
    ),
    rate=0.01,
    scaled=True,
    warmup=50,
)
T5_THIRD = Plan(
    phases=(
        Phase(600, Mix(0.4, 0.6, 0.1, plain=0.8, full=0.9, kinds=HARD)),
        Phase(1000, Mix(0.4, 0.5, 0.25, full=0.5, kinds=HARD)),
    ),
    rate=0.01,
    scaled=True,
    warmup=50,
    power=0.5,
)
OPT_FIRST = Plan(
    phases=(
        Phase(400, Mix(1.0, 0.0, 0.0, plain=1.0, short=1.0, kinds=LOOKUP)),
        Phase(500, Mix(1.0, 0.0, 0.0, plain=1.0, kinds=(*LOOKUP, *["position"] * 4))),
        Phase(200, Mix(1.0, 0.0, 0.0, plain=0.9, kinds=(*PLAIN, "position"))),
        Phase(400, Mix(1.0, 0.0, 0.0, plain=0.9, kinds=(*ONE_SIDED, "position"))),
        Phase(600, Mix(0.9, 0.1, 0.05, plain=0.7, full=0.9, kinds=BOTH)),
        Phase(1100, Mix(0.5, 0.4, 0.25, full=0.5, kinds=HARD, turns=2)),
    ),
    rate=8e-4,
    scaled=False,
    power=0.7,
)
OPT_SECOND = Plan(
    phases=(
        Phase(500, Mix(0.9, 0.1, 0.1, plain=0.6, full=0.9, kinds=(*HARD, *LAST))),
        Phase(800, Mix(0.5, 0.4, 0.25, full=0.5, kinds=(*HARD, "compositional", "count"))),
    ),
    rate=8e-4,
    scaled=False,
    warmup=50,
    power=0.7,
)


def t5_config(tokenizer: PreTrainedTokenizerBase) -> T5Config:
    """T5 v1.1's shape (gated GELU, untied head, no dropout) with 1.4 million parameters."""
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": 128,
        "d_kv": 32,
        "num_heads": 4,
        "d_ff": 256,
        "num_layers": 3,
        "num_decoder_layers": 3,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    return T5Config(**settings)


def opt_config(tokenizer: PreTrainedTokenizerBase) -> OPTConfig:
    """OPT's shape (pre-norm, learned positions, tied head) with 1.1 million parameters."""
    return OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        word_embed_proj_dim=128,
        num_hidden_layers=5,
        ffn_dim=512,
        num_attention_heads=4,
        max_position_embeddings=256,
        do_layer_norm_before=True,
        dropout=0.0,
        attention_dropout=0.0,
        init_std=0.09,
        tie_word_embeddings=True,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=2,
    )


def initialise(model: Any) -> None:
    """Starts that make looking things up quick to learn; the architectures stay as they are.

    Looking up takes a head that attends by distance, to gather what stands beside a word, and one
    that attends to the same word elsewhere. T5's distance biases start too small to tell distances
    apart: they start wide, and its untied head is brought to unit logits. OPT's positions start
    unrelated to each other: they start as sinusoids in a quarter of the width; the heads of the
    first layer attend one to four places back (as far as a place stands behind its shape), two of
    the second to equal words.
    """
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            model.lm_head.weight.mul_(model.config.d_model**-0.5)
            for stack in (model.encoder, model.decoder):
                bias = stack.block[0].layer[0].SelfAttention.relative_attention_bias
                bias.weight.normal_(0.0, 2.0)
            return
        decoder = model.model.decoder
        places = decoder.embed_positions.weight
        quarter = places.shape[1] // 4
        places.zero_()
        places[:, :quarter] = 3 * model.config.init_std * _sinusoids(len(places), quarter)
        decoder.embed_tokens.weight[:, :quarter] = 0.0
        for head in range(model.config.num_attention_heads):
            _look_back(decoder.layers[0].self_attn, head, back=head + 1, width=quarter)
        for head in range(2):
            _look_alike(decoder.layers[1].self_attn, head, beyond=quarter)


def _frequencies(width: int) -> Tensor:
    """``width / 2`` geometric frequencies from 1 to 0.01, in radians a place."""
    return 100.0 ** -(torch.arange(width // 2) / (width // 2))


def _sinusoids(length: int, width: int) -> Tensor:
    """Sines and cosines (length, width) of these frequencies, of root mean square 1."""
    turns = torch.arange(length)[:, None] * _frequencies(width)
    return math.sqrt(2.0) * torch.cat((turns.sin(), turns.cos()), 1)


def _look_back(attention: Any, head: int, back: int, width: int, gain: float = 0.7) -> None:
    """Make one head attend ``back`` places back, by the sinusoids in the first ``width``."""
    half = width // 2
    rows = head * attention.head_dim + torch.arange(half)
    waves = torch.arange(half)
    angle = -back * _frequencies(width)
    for weight, turn in ((attention.q_proj.weight, angle), (attention.k_proj.weight, 0 * angle)):
        weight[head * attention.head_dim : (head + 1) * attention.head_dim] = 0.0
        weight[rows, waves] = gain * turn.cos()
        weight[rows, waves + half] = gain * turn.sin()
        weight[rows + half, waves] = -gain * turn.sin()
        weight[rows + half, waves + half] = gain * turn.cos()


def _look_alike(attention: Any, head: int, beyond: int, gain: float = 0.2) -> None:
    """Make one head attend to equal words: queries equal keys, both blind to positions."""
    rows = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
    attention.q_proj.weight[rows].normal_(0.0, gain)
    attention.q_proj.weight[rows, :beyond] = 0.0
    attention.k_proj.weight[rows] = attention.q_proj.weight[rows]
