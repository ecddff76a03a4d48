"""Sizes, initial weights and training phases of the small language models.

The phases were found by trial: a kind of question that is asked alone is learned in 300 steps;
among others it takes ten times as many, or is not learned at all. So each comes alone first:
colours and shapes in short texts, then places, then relations in easier forms; captions and all
the rest come after that.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, OPTConfig, PreTrainedTokenizerBase, T5Config

from jobs.zoo_training.corpus import CHAT, PROMPTS, READING_KINDS, Mix


@dataclass(frozen=True)
class Phase:
    """Steps on one mix of tasks."""

    steps: int
    mix: Mix


@dataclass(frozen=True)
class LanguageTraining:
    """The training of one model.

    Attributes:
        phases: mixes of tasks, one after the other.
        rate: highest learning rate.
        scaled: whether a tensor's rate is multiplied by its root mean square.
        batch: examples in a step.
        warmup: steps of linear warm-up.
        clip: largest norm of the gradient.
        power: exponent of the number n of an example's targets by which its loss is divided; the
            example then weighs n ** (1 - power) times as much as one with a single target.
    """

    phases: tuple[Phase, ...]
    rate: float
    scaled: bool
    batch: int = 64
    warmup: int = 100
    clip: float = 1.0
    power: float = 1.0

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)


LOOKUP = ("color", "shape")
PLACES = ("color", "shape", "exists", "position", "count")
T5_FIRST = LanguageTraining(
    phases=(
        Phase(400, Mix(1.0, 0.0, 0.0, plain=1.0, short=1.0, kinds=LOOKUP)),
        Phase(400, Mix(1.0, 0.0, 0.0, plain=1.0, short=0.3, kinds=PLACES)),
        Phase(500, Mix(0.7, 0.3, 0.1, plain=0.8, short=0.1)),
        Phase(1200, Mix(0.5, 0.4, 0.25)),
    ),
    rate=0.015,
    scaled=True,
)
# Relations become harder step by step (see corpus.ask); the other kinds are asked all along.
PLAIN = (*READING_KINDS, *["plain relation"] * 6)
ONE_SIDED = (*READING_KINDS, *["one-sided relation"] * 7, "plain relation")
BOTH = (*READING_KINDS, *["one-sided relation"] * 2, *["relation"] * 5, "compositional")
LAST = (*["compositional"] * 6, "count", "count")
HARD = (*READING_KINDS, "relation", "relation", "compositional")
T5_SECOND = LanguageTraining(
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
T5_THIRD = LanguageTraining(
    phases=(
        Phase(600, Mix(0.4, 0.6, 0.1, plain=0.8, full=0.9, kinds=HARD)),
        Phase(1000, Mix(0.4, 0.5, 0.25, full=0.5, kinds=HARD)),
    ),
    rate=0.01,
    scaled=True,
    warmup=50,
    power=0.5,
)
OPT_FIRST = LanguageTraining(
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
OPT_SECOND = LanguageTraining(
    phases=(
        Phase(500, Mix(0.9, 0.1, 0.1, plain=0.6, full=0.9, kinds=(*HARD, *LAST))),
        Phase(800, Mix(0.5, 0.4, 0.25, full=0.5, kinds=(*HARD, "compositional", "count"))),
    ),
    rate=8e-4,
    scaled=False,
    warmup=50,
    power=0.7,
)


def _chats(plan: LanguageTraining) -> LanguageTraining:
    """The plan with questions in Vicuna's layout too."""
    prompts = (*PROMPTS, CHAT)
    phases = [replace(phase, mix=replace(phase.mix, prompts=prompts)) for phase in plan.phases]
    return replace(plan, phases=tuple(phases))


LLAMA_FIRST, LLAMA_SECOND = _chats(OPT_FIRST), _chats(OPT_SECOND)


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


def llama_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """LLaMA's shape (RMSNorm, rotary positions, SwiGLU) with 1.3 million parameters."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=5,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.09,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def initialise(model: Any) -> None:
    """Set initial weights with which looking things up is learned quickly.

    Looking up needs a head that attends by distance, to collect the words beside a word, and a head
    that attends to the same word elsewhere. T5's usual distance biases are too small to tell
    distances apart: here they are larger, and the untied output matrix gives logits of unit size.
    OPT's usual positions have no relation to each other: here they are sinusoids in a quarter of
    the width; the heads of the first layer attend one to four positions back (as far as a place
    stands behind its shape), two heads of the second layer to equal words. LLaMA's get the same
    heads: its positions are rotations, which turn the constant in one number of every word vector.
    The architectures are unchanged.
    """
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            model.lm_head.weight.mul_(model.config.d_model**-0.5)
            for stack in (model.encoder, model.decoder):
                bias = stack.block[0].layer[0].SelfAttention.relative_attention_bias
                bias.weight.normal_(0.0, 2.0)
        elif model.config.model_type == "llama":
            _initialise_llama(model)
        else:
            _initialise_opt(model)


def _initialise_opt(model: Any) -> None:
    decoder = model.model.decoder
    positions = decoder.embed_positions.weight
    quarter = positions.shape[1] // 4
    positions.zero_()
    positions[:, :quarter] = 3 * model.config.init_std * _sinusoids(len(positions), quarter)
    decoder.embed_tokens.weight[:, :quarter] = 0.0
    for head in range(model.config.num_attention_heads):
        _look_back(decoder.layers[0].self_attn, head, back=head + 1, width=quarter)
    for head in range(2):
        _look_alike(decoder.layers[1].self_attn, head, beyond=quarter)


def _initialise_llama(model: Any) -> None:
    config, layers = model.config, model.model.layers
    model.lm_head.weight.mul_(config.hidden_size**-0.5 / config.initializer_range)
    model.model.embed_tokens.weight[:, 0] = 5 * config.initializer_range
    turns = model.model.rotary_emb.inv_freq  # radians a position, from 1 downwards
    for head in range(config.num_attention_heads):
        _turn_back(layers[0].self_attn, head, back=head + 1, turns=turns)
    for head in range(2):
        _turn_alike(layers[1].self_attn, head)


def _turn_back(attention: Any, head: int, back: int, turns: Tensor, gain: float = 0.8) -> None:
    """Make a head attend ``back`` positions back, by the faster half of the rotations."""
    half = attention.head_dim // 2
    fast = torch.arange(half // 2)
    rows = head * attention.head_dim + fast
    angle = -back * turns[fast]
    for weight, turn in ((attention.q_proj.weight, angle), (attention.k_proj.weight, 0 * angle)):
        weight[head * attention.head_dim : (head + 1) * attention.head_dim] = 0.0
        weight[rows, 0] = gain * turn.cos()
        weight[rows + half, 0] = gain * turn.sin()


def _turn_alike(attention: Any, head: int, gain: float = 0.15) -> None:
    """Make a head attend to equal words: queries equal keys, in the slower rotations."""
    half, first = attention.head_dim // 2, head * attention.head_dim
    slow = torch.arange(half // 2, half)
    attention.q_proj.weight[first : first + attention.head_dim] = 0.0
    for rows in (first + slow, first + half + slow):
        attention.q_proj.weight[rows, 1:] = gain * torch.randn(
            len(rows), attention.q_proj.in_features - 1
        )
    rows = slice(first, first + attention.head_dim)
    attention.k_proj.weight[rows] = attention.q_proj.weight[rows]


def _frequencies(width: int) -> Tensor:
    """``width / 2`` geometric frequencies from 1 to 0.01, in radians a position."""
    return 100.0 ** -(torch.arange(width // 2) / (width // 2))


def _sinusoids(length: int, width: int) -> Tensor:
    """Sines and cosines (length, width) of `_frequencies`, with root mean square 1."""
    turns = torch.arange(length)[:, None] * _frequencies(width)
    return math.sqrt(2.0) * torch.cat((turns.sin(), turns.cos()), 1)


def _look_back(attention: Any, head: int, back: int, width: int, gain: float = 0.7) -> None:
    """Make a head attend ``back`` positions back, by the sinusoids in the first ``width``."""
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
    """Make a head attend to equal words: queries equal keys, and neither sees positions."""
    rows = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
    attention.q_proj.weight[rows].normal_(0.0, gain)
    attention.q_proj.weight[rows, :beyond] = 0.0
    attention.k_proj.weight[rows] = attention.q_proj.weight[rows]
