"""Parts that the contenders of ``benchmark.py train`` share: sizes, batches, a step, a case.

Every contender of a case has the same weights, the same batch and its own dropout. Random weights
are made on the device, in the benchmark's number format, so that the full-size models need no
files. ``stage1_contenders`` and ``stage2_contenders`` have the cases.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import OPTConfig, PreTrainedTokenizerFast, T5Config

from jobs.benchmarks import measure as bench
from jobs.recipes import published
from modeling import flops
from modeling.blip2 import Stage1Config
from modeling.linear import products_by
from modeling.precision import DTYPES
from modeling.qformer import QFormerConfig
from modeling.vision.encoders import EvaConfig, ImageEncoder, build_eva_encoder, freeze

START = 1


@dataclass(frozen=True)
class Size:
    """The models of one size of the benchmark.

    Attributes:
        stage1: sizes of stage 1.
        image_tokens: tokens of an image.
        encoder: sizes of the frozen image encoder; None: image tokens are given.
        languages: for each language model a function that returns its configuration.
    """

    stage1: Stage1Config
    image_tokens: int
    encoder: EvaConfig | None
    languages: dict[str, Callable[[], Any]]


def opt_base() -> OPTConfig:
    """Configuration with OPT-125M's sizes."""
    return OPTConfig(
        hidden_size=768, word_embed_proj_dim=768, ffn_dim=3072, num_hidden_layers=12,
        num_attention_heads=12,
    )  # fmt: skip


def t5_base() -> T5Config:
    """Configuration with FlanT5-base's sizes."""
    return flan_t5(d_model=768, d_ff=2048, num_layers=12, num_heads=12, vocab_size=32128)


def opt_tiny() -> OPTConfig:
    """Configuration of an OPT for tests."""
    return OPTConfig(
        vocab_size=200, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=128,
    )  # fmt: skip


def t5_tiny() -> T5Config:
    """Configuration of a FlanT5 for tests."""
    return flan_t5(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=200)


def flan_t5(**sizes: int) -> T5Config:
    """Configuration of a FlanT5."""
    family = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    config: T5Config = T5Config.from_dict({**family, "decoder_start_token_id": 0, **sizes})
    return config


_TINY = QFormerConfig(
    width=32, layers=4, heads=4, ffn=64, queries=4, encoder_width=48, vocab=200, max_positions=64
)
SIZES = {
    "tiny": Size(
        Stage1Config(_TINY, embed=16, dec_token_id=199),
        17,
        EvaConfig(width=48, blocks=2, heads=4, mlp=96),
        {"opt-tiny": opt_tiny, "t5-tiny": t5_tiny},
    ),
    "base": Size(Stage1Config(), 257, None, {"opt-125m": opt_base, "flan-t5-base": t5_base}),
    "full": Size(
        Stage1Config(),
        257,
        EvaConfig(),
        {
            "opt-2.7b": lambda: published.opt(2560),
            "flan-t5-xl": lambda: published.flan_t5(2048),
            "flan-t5-xxl": lambda: published.flan_t5(4096),
        },
    ),
}


@dataclass
class Contender:
    """One way to compute a case's step.

    Attributes:
        module: module that trains.
        losses: function that returns the losses of the case's batch, ``loss`` among them.
        around: context in which each step runs.
        optimizer: optimizer that makes an update after each step; None: no update.
    """

    module: nn.Module
    losses: Callable[[], dict[str, Tensor]]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    optimizer: torch.optim.Optimizer | None = field(default=None)

    def step(self) -> None:
        """Forward and backward, and an update where there is an optimizer."""
        self.module.zero_grad(set_to_none=True)
        with self.around():
            self.losses()["loss"].backward()
        if self.optimizer is not None:
            self.optimizer.step()


@dataclass(frozen=True)
class Case:
    """A batch, and the contenders that compute its step.

    Attributes:
        name: title of the case in the table.
        batch: samples.
        gflop: GFLOP of our model's matrix products for a sample, forward and backward, by formula.
        make: for each contender a function that makes it: one at a time to measure memory, all
            together to take turns.
    """

    name: str
    batch: int
    gflop: float
    make: dict[str, Callable[[], Contender]]


# -------------------------------------------------------------------------------- the batch


def caption_lengths(count: int) -> list[int]:
    """Lengths of captions like COCO's, in tokens; always the same draw.

    They are normal around 13 with deviation 2.5 ([CLS] and [SEP] included), rounded, and kept
    between 8 and 20.
    """
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(0)) * 2.5 + 13
    return [int(length) for length in drawn.round().clamp(8, 20)]


def text_batch(lengths: Sequence[int], words: int, device: str) -> tuple[Tensor, Tensor]:
    """Ids ([CLS] = 1, [SEP] = 2, random words) and mask (B, longest)."""
    generator = torch.Generator().manual_seed(1)
    ends = torch.tensor(lengths)
    longest = max(lengths)
    mask = (torch.arange(longest)[None] < ends[:, None]).long()
    ids = torch.randint(5, words, (len(lengths), longest), generator=generator)
    ids[:, 0] = 1
    ids[torch.arange(len(lengths)), ends - 1] = 2
    return (ids * mask).to(device), mask.to(device)


def random_texts(lengths: Sequence[int], vocabulary: int) -> list[str]:
    """Texts of made-up words, one token each."""
    generator = torch.Generator().manual_seed(2)
    rows = (torch.randint(0, vocabulary - 6, (n,), generator=generator) for n in lengths)
    return [" ".join(f"w{word}" for word in row) for row in rows]


def tokenizer(vocabulary: int, kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of made-up words with OPT's start token or T5's end token."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "\n"]
    words = special + [f"w{number}" for number in range(vocabulary - len(special))]
    ids = {word: number for number, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(" +"), "removed")
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A" if kind == "opt" else "$A </s>",
        special_tokens=[("<s>", START), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip


def image_input(args: Any, size: Size) -> Callable[[], Tensor]:
    """Function that returns image tokens (B, P, D).

    They are random, or at each call a frozen encoder's tokens of random images.
    """
    dtype, device = DTYPES[args.dtype], args.device
    shape = (args.batch, size.image_tokens, size.stage1.qformer.encoder_width)
    torch.manual_seed(5)
    if size.encoder is None:
        tokens = torch.randn(shape).to(device, dtype)
        return lambda: tokens
    side = size.encoder.patch * round((size.image_tokens - 1) ** 0.5)
    images = torch.randn(args.batch, 3, side, side).to(device, dtype)
    with made_as(args):
        encoder: Any = freeze(build_eva_encoder(size.encoder, side))
    if args.compile:
        encoder = compiled(encoder)

    def tokens_of_images() -> Tensor:
        with torch.no_grad():
            found: Tensor = encoder(images)
            return found

    return tokens_of_images


def compiled(encoder: ImageEncoder) -> Any:
    """A frozen encoder compiled for one batch size."""
    return torch.compile(encoder, dynamic=False)


@contextmanager
def made_as(args: Any) -> Iterator[None]:
    """Inside, modules are made on the benchmark's device in its dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[args.dtype])
    try:
        with torch.device(args.device):
            yield
    finally:
        torch.set_default_dtype(before)


def with_torchs_products(
    args: Any, ours: Callable[[], Contender]
) -> dict[str, Callable[[], Contender]]:
    """On CPU in fp32, ours with the others' library of products: the algorithm's own gain."""
    if not bench.has_torchs(args.device, args.dtype):
        return {}

    def plain() -> Contender:
        made = ours()
        return replace(made, around=partial(products_by, "torch"))

    return {bench.TORCHS: plain}


def encoder_flops(size: Size) -> float:
    """FLOPs of the frozen image encoder for an image; 0 where image tokens are given."""
    if size.encoder is None:
        return 0.0
    stack = flops.Stack(
        size.encoder.width, size.encoder.blocks, size.encoder.mlp, size.encoder.width,
        size.encoder.width,
    )  # fmt: skip
    sizes = flops.VitSizes(stack, size.image_tokens, size.encoder.patch)
    return flops.vit_flops(sizes, trained=False)
