"""What `benchmark.py train` compares: stage 1 and stage 2 steps of ours and of others.

Every contender of a case has the same weights, the same batch and its own dropout. Random weights
are made on the device, in the benchmark's dtype, so that the full-size models need no files.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Blip2Config,
    Blip2ForConditionalGeneration,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from jobs.benchmarks import measure as bench
from jobs.benchmarks import reference
from jobs.recipes import published
from modeling import flops
from modeling.blip2 import Stage1, Stage1Config, Stage2, Stage2Config, stage2_config
from modeling.language import adapters
from modeling.linear import products_by
from modeling.names import huggingface_names
from modeling.qformer import QFormerConfig
from modeling.vision.encoders import EvaConfig, ImageEncoder, build_eva_encoder, freeze

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EOL, START = 4, 1
FAMILIES = {"opt": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM}


@dataclass(frozen=True)
class Size:
    """The models of a benchmark; without an encoder image tokens are given."""

    stage1: Stage1Config
    image_tokens: int
    encoder: EvaConfig | None
    languages: dict[str, Callable[[], Any]]


def opt_base() -> OPTConfig:
    """OPT-125M's sizes."""
    return OPTConfig(
        hidden_size=768, word_embed_proj_dim=768, ffn_dim=3072, num_hidden_layers=12,
        num_attention_heads=12,
    )  # fmt: skip


def t5_base() -> T5Config:
    """FlanT5-base's sizes."""
    return _flan_t5(d_model=768, d_ff=2048, num_layers=12, num_heads=12, vocab_size=32128)


def opt_tiny() -> OPTConfig:
    """For tests."""
    return OPTConfig(
        vocab_size=200, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=128,
    )  # fmt: skip


def t5_tiny() -> T5Config:
    """For tests."""
    return _flan_t5(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=200)


def _flan_t5(**sizes: int) -> T5Config:
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
        module: what trains.
        losses: the losses of the case's batch, ``loss`` among them.
        around: entered around each step.
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
    """A batch, and who computes its step.

    Attributes:
        gflop: our model's matrix products for a sample, forward and backward, by formula.
        make: contender by name; made one at a time to measure memory, together to take turns.
    """

    name: str
    batch: int
    gflop: float
    make: dict[str, Callable[[], Contender]]


# ---------------------------------------------------------------------------------- stage 1


def stage1_case(args: Any, name: str, lengths: Sequence[int], padded: int) -> Case:
    """Stage 1 on texts of these lengths; the reference pads them to ``padded``.

    The mix of a case is its lengths: all of one length, or drawn by ``caption_lengths``.
    """
    size = SIZES[args.size]
    config = size.stage1
    ids, mask = text_batch(lengths, config.qformer.vocab - 2, args.device)
    images, start = image_input(args, size), _stage1(args, config)

    def ours() -> Contender:
        module = deepcopy(start)
        return Contender(module, lambda: module(images(), ids, mask))

    def theirs() -> Contender:
        module = reference.Reference(reference.retrieval_model(config), config.dec_token_id)
        module = module.to(args.device, DTYPES[args.dtype]).train()
        reference.give_weights(start, module)
        pad = padded - ids.shape[1]
        given = F.pad(ids, (0, pad)), F.pad(mask, (0, pad))
        return Contender(module, lambda: module(images(), *given))

    work = flops.stage1_work(config, size.image_tokens, ids.shape[1], len(lengths))
    total = sum(part.trained for part in work.values()) + _encoder_flops(args, size)
    make = {"ours": ours} | _with_torchs_products(args, ours) | {"reference": theirs}
    return Case(name, len(lengths), total / 1e9, make)


def caption_lengths(count: int) -> list[int]:
    """Tokens of captions as long as COCO's: normal around 13 with deviation 2.5 ([CLS] and [SEP]
    included), rounded, kept between 8 and 20; always the same draw.
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


def _stage1(args: Any, config: Stage1Config) -> Stage1:
    torch.manual_seed(0)
    with made_as(args):
        return Stage1(config).train()


# ---------------------------------------------------------------------------------- stage 2


def stage2_case(args: Any, name: str, lengths: Sequence[int]) -> Case:
    """Stage 2 with a language model of random weights on texts of these lengths (the end-of-line
    or end-of-sequence token included).
    """
    size = SIZES[args.size]
    made: Any = size.languages[name]()
    config = stage2_config(size.stage1, made.hidden_size)
    kind = made.model_type
    texts = random_texts([n - 1 - (kind == "opt") for n in lengths], made.vocab_size)
    images = image_input(args, size)

    def ours() -> Contender:
        module, adapter = _stage2(args, config), _language(args, kind, made)

        def losses() -> dict[str, Tensor]:
            return {"loss": adapter.loss(module(images()), texts, split_at(texts))}

        return Contender(module, losses)

    def theirs() -> Contender:
        adapter = _language(args, kind, made)
        module = _huggingface(args, config, adapter, size)
        inputs = _huggingface_inputs(adapter, texts, config.qformer.queries, made.vocab_size - 1)

        def losses() -> dict[str, Tensor]:
            # Their masks are bool and their tokens the model's dtype.
            return {"loss": module(pixel_values=images(), **inputs).loss}

        return Contender(module, losses)

    given, targets = _mean_lengths(kind, lengths)
    sizes = flops.language_sizes(made)
    total = flops.stage2_work(config, size.image_tokens).trained + _encoder_flops(args, size)
    total += flops.language_flops(sizes, config.qformer.queries + given, targets)
    make = {"ours": ours} | _with_torchs_products(args, ours)
    return Case(f"stage 2, {name}", len(lengths), total / 1e9, make | {"Hugging Face": theirs})


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


class Given(nn.Module):
    """In place of Hugging Face's vision model: tokens that are there already, and the norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.post_layernorm = norm

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        normed = self.post_layernorm(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=normed, pooler_output=normed[:, 0])


def _stage2(args: Any, config: Stage2Config) -> Stage2:
    torch.manual_seed(0)
    with made_as(args):
        return Stage2(config).train()


def _language(args: Any, kind: str, config: Any) -> Any:
    torch.manual_seed(3)
    with made_as(args):
        model = FAMILIES[kind].from_config(config, dtype=DTYPES[args.dtype])
        if kind == "t5":  # a head of its own, as FlanT5 has
            model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight).normal_())
    family = adapters.DecoderLM if kind == "opt" else adapters.EncoderDecoderLM
    return family(model, tokenizer(config.vocab_size, kind))


def _huggingface(args: Any, config: Stage2Config, adapter: Any, size: Size) -> Any:
    """Hugging Face's BLIP-2 with stage 2's weights around a copy of the language model."""
    sizes = reference.huggingface_qformer(replace(config.qformer, text=True))
    sizes |= {"use_qformer_text_input": False}
    whole = Blip2Config(
        vision_config=reference.huggingface_vision(config.qformer.encoder_width),
        qformer_config=sizes,
        text_config=adapter.model.config.to_dict(),
        num_query_tokens=config.qformer.queries,
        image_token_index=adapter.model.config.vocab_size - 1,
    )
    with torch.device("meta"):
        module: Any = Blip2ForConditionalGeneration(whole)
    module.vision_model = Given(module.vision_model.post_layernorm)
    plain = type(adapter.model)(adapter.model.config) if size else None
    module.language_model = _plain_copy(args, plain, adapter.model)
    stage = _stage2(args, config)
    theirs = {n: p for n, p in module.named_parameters() if not n.startswith("language_model.")}
    names = {other: own for own, other in huggingface_names(dict(stage.named_parameters())).items()}
    state = {n: stage.get_parameter(names[n]).detach().reshape(p.shape) for n, p in theirs.items()}
    module.load_state_dict(state, strict=False, assign=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in theirs)
    return module.train()


def _plain_copy(args: Any, plain: Any, model: Any) -> Any:
    """The same frozen tensors in modules that nobody changed."""
    plain.load_state_dict(model.state_dict(), assign=True)
    return freeze(plain.to(args.device))


def _huggingface_inputs(
    adapter: Any, texts: list[str], queries: int, image: int
) -> dict[str, Tensor]:
    """Hugging Face's inputs and labels for what our adapter reads and learns."""
    words, pad = adapter.tokenizer, 0
    if isinstance(adapter, adapters.DecoderLM):
        rows = [[*row, EOL] for row in words(texts)["input_ids"]]
        given, targets = rows, [[-100] * queries + row for row in rows]
    else:
        ids = words(texts, add_special_tokens=False)["input_ids"]
        lengths = torch.tensor([len(row) for row in ids])
        cuts = adapters.split_prefix(lengths, split_at(texts)).tolist()
        given = [[*row[:cut], 2] for row, cut in zip(ids, cuts, strict=True)]
        targets = [[*row[cut:], 2] for row, cut in zip(ids, cuts, strict=True)]
    inputs = _padded([[image] * queries + row for row in given], pad)
    seen = _padded([[1] * (queries + len(row)) for row in given], 0)
    made = {"input_ids": inputs, "attention_mask": seen, "labels": _padded(targets, -100)}
    return {name: tensor.to(adapter.device) for name, tensor in made.items()}


def split_at(texts: list[str]) -> Tensor:
    """Where the prefix of each text ends, as both sides are given it."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(len(texts), generator=generator, dtype=torch.float64)


def _padded(rows: list[list[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def _mean_lengths(kind: str, lengths: Sequence[int]) -> tuple[float, float]:
    """Tokens given beside the queries and tokens learned, of the longest text."""
    text = max(lengths)
    return (0.0, float(text)) if kind == "opt" else flops.split_text(text)


# ------------------------------------------------------------------------------ what both need


def image_input(args: Any, size: Size) -> Callable[[], Tensor]:
    """Image tokens (B, P, D): random ones, or a frozen encoder's of random images at each call."""
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


def _with_torchs_products(
    args: Any, ours: Callable[[], Contender]
) -> dict[str, Callable[[], Contender]]:
    """On CPU in fp32, ours with the library of the others: what the algorithm alone gives."""
    if not bench.has_torchs(args.device, args.dtype):
        return {}

    def plain() -> Contender:
        made = ours()
        return replace(made, around=partial(products_by, "torch"))

    return {bench.TORCHS: plain}


def _encoder_flops(args: Any, size: Size) -> float:
    if size.encoder is None:
        return 0.0
    stack = flops.Stack(
        size.encoder.width, size.encoder.blocks, size.encoder.mlp, size.encoder.width,
        size.encoder.width,
    )  # fmt: skip
    sizes = flops.VitSizes(stack, size.image_tokens, size.encoder.patch)
    return flops.vit_flops(sizes, trained=False)
