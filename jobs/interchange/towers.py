"""Frozen vision towers converted between LAVIS, timm and Hugging Face by tables.

A table says how each tensor of the new form is made of tensors of the old one (`Made`). It is
applied one tensor at a time, so that no tower has to fit into memory. The common form is Hugging
Face's, without the prefix `vision_model.`: `Blip2VisionModel` for EVA-CLIP, `CLIPVisionModel` for
CLIP.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from jobs.models.tensors import Lazy, Tensors
from modeling.names import BLIP2_BLOCK_TO_TIMM, CLIP_BLOCK_TO_TIMM, EVA_TO_TIMM

KINDS = ("weight", "bias")
CLIP_BLOCK_TO_OPENAI = {
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_CLIP_EMBEDDINGS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
}


@dataclass(frozen=True)
class Made:
    """The making of one tensor.

    Attributes:
        sources: names of the tensors that it is made of.
        make: function of these tensors, in this order.
    """

    sources: tuple[str, ...]
    make: Callable[..., Tensor]


Table = dict[str, Made]
"""How each tensor of a tower is made, by the name that it gets."""


def apply_table(table: Table, tensors: Mapping[str, Lazy]) -> Tensors:
    """The tensors that a table makes of others; each is made when it is read.

    Raises:
        ValueError: A source is missing; the message names the first one.
    """
    result = {}
    for name, made in table.items():
        gone = [source for source in made.sources if source not in tensors]
        if gone:
            raise ValueError(f"weights lack {gone[0]!r}: is this the right model, and is it whole?")
        sources = [tensors[source] for source in made.sources]
        outline = made.make(*(torch.empty(s.shape, dtype=s.dtype, device="meta") for s in sources))
        read = partial(_make, made.make, sources)
        result[name] = Lazy(tuple(outline.shape), outline.dtype, read)
    return result


def _make(make: Callable[..., Tensor], sources: list[Lazy]) -> Tensor:
    return make(*(source.read() for source in sources))


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """The number of a tower's blocks: numbers behind `prefix` that at least five names share."""
    numbers: dict[str, int] = {}
    for name in names:
        if name.startswith(prefix):
            number = name.removeprefix(prefix).partition(".")[0]
            numbers[number] = numbers.get(number, 0) + 1
    return sum(count > 4 for count in numbers.values())


def eva_to_huggingface(blocks: int) -> Table:
    """`Blip2VisionModel` from LAVIS's or timm's EVA: query and value bias around a zero key bias.

    `post_layernorm` is left out: it is our trainable `ln_vision`.
    """
    table = {theirs: Made((eva,), _same) for theirs, eva in EVA_TO_TIMM.items()}
    for theirs, eva in _eva_blocks(blocks):
        table[theirs] = Made((eva,), _same)
    for index in range(blocks):
        attn = f"blocks.{index}.attn."
        table[f"encoder.layers.{index}.self_attn.qkv.bias"] = Made(
            (f"{attn}q_bias", f"{attn}v_bias"), _around_zero
        )
    return table


def huggingface_to_eva(blocks: int) -> Table:
    """LAVIS's EVA from `Blip2VisionModel`.

    Reading a bias raises a ValueError where its key part, for which EVA has no place, is not zero.
    """
    table = {eva: Made((theirs,), _same) for theirs, eva in EVA_TO_TIMM.items()}
    for theirs, eva in _eva_blocks(blocks):
        table[eva] = Made((theirs,), _same)
    for index in range(blocks):
        source = (f"encoder.layers.{index}.self_attn.qkv.bias",)
        table[f"blocks.{index}.attn.q_bias"] = Made(source, _query_bias)
        table[f"blocks.{index}.attn.v_bias"] = Made(source, _value_bias)
    return table


def openai_to_huggingface(blocks: int) -> Table:
    """`CLIPVisionModel` from LAVIS's CLIP ViT-L, which lacks the last block and the final norm.

    A Hugging Face CLIP has both, and our encoders drop the last block when they load it
    (``modeling.vision.encoders``). They are filled with zeros here: such a block adds nothing to
    its input, so that the last hidden states are the features too.
    """
    table = {theirs: Made((openai,), _same) for theirs, openai in _CLIP_EMBEDDINGS.items()}
    for theirs, openai in _clip_blocks(blocks):
        table[theirs] = Made((openai,), _same)
    for index in range(blocks):
        for kind in KINDS:
            joint = f"transformer.resblocks.{index}.attn.in_proj_{kind}"
            for part, name in enumerate("qkv"):
                theirs = f"encoder.layers.{index}.self_attn.{name}_proj.{kind}"
                table[theirs] = Made((joint,), _Third(part))
    return table | _filler(table, blocks)


def huggingface_to_openai(blocks: int) -> Table:
    """LAVIS's CLIP ViT-L with that many blocks, from a `CLIPVisionModel` with one block more."""
    table = {openai: Made((theirs,), _same) for theirs, openai in _CLIP_EMBEDDINGS.items()}
    for theirs, openai in _clip_blocks(blocks):
        table[openai] = Made((theirs,), _same)
    for index in range(blocks):
        for kind in KINDS:
            parts = (f"encoder.layers.{index}.self_attn.{name}_proj.{kind}" for name in "qkv")
            table[f"transformer.resblocks.{index}.attn.in_proj_{kind}"] = Made(tuple(parts), _join)
    return table


def _filler(table: Table, blocks: int) -> Table:
    """A last block and a final norm of zeros, in the shapes of the first block's tensors."""
    first, last = "encoder.layers.0.", f"encoder.layers.{blocks}."
    filled = {}
    for name, made in table.items():
        if name.startswith(first):
            inner = made.make
            filled[last + name.removeprefix(first)] = Made(made.sources, _Zeros(inner))
    for kind in KINDS:
        filled[f"post_layernorm.{kind}"] = Made((f"ln_pre.{kind}",), _Zeros(_same))
    return filled


def _eva_blocks(blocks: int) -> list[tuple[str, str]]:
    pairs = [("self_attn.qkv.weight", "attn.qkv.weight")]
    pairs += [(f"{a}.{k}", f"{b}.{k}") for a, b in BLIP2_BLOCK_TO_TIMM.items() for k in KINDS]
    return [(f"encoder.layers.{i}.{a}", f"blocks.{i}.{b}") for i in range(blocks) for a, b in pairs]


def _clip_blocks(blocks: int) -> list[tuple[str, str]]:
    openai = {a: CLIP_BLOCK_TO_OPENAI[timm] for a, timm in CLIP_BLOCK_TO_TIMM.items()}
    pairs = [(f"{a}.{k}", f"{b}.{k}") for a, b in openai.items() for k in KINDS]
    return [
        (f"encoder.layers.{i}.{a}", f"transformer.resblocks.{i}.{b}")
        for i in range(blocks)
        for a, b in pairs
    ]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _join(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


def _around_zero(query: Tensor, value: Tensor) -> Tensor:
    return torch.cat((query, torch.zeros_like(value), value))


def _query_bias(joint: Tensor) -> Tensor:
    query, key, _ = joint.chunk(3)
    if not joint.is_meta and key.any():
        raise ValueError(
            "a self_attn.qkv.bias has a key part that is not zero; LAVIS's EVA has no place for it"
        )
    return query


def _value_bias(joint: Tensor) -> Tensor:
    return joint.chunk(3)[2]


@dataclass(frozen=True)
class _Third:
    """The query, key or value rows of a joint projection."""

    part: int

    def __call__(self, joint: Tensor) -> Tensor:
        return joint.chunk(3)[self.part]


@dataclass(frozen=True)
class _Zeros:
    """Zeros in the shape of the tensor that `inner` makes."""

    inner: Callable[..., Tensor]

    def __call__(self, *sources: Tensor) -> Tensor:
        return torch.zeros_like(self.inner(*sources))
