"""Stage 2 of ``benchmark.py train``: ours, and Hugging Face's BLIP-2."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Blip2Config,
    Blip2ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from jobs.benchmarks import reference
from jobs.benchmarks.train_contenders import (
    SIZES,
    Case,
    Contender,
    encoder_flops,
    image_input,
    made_as,
    random_texts,
    tokenizer,
    with_torchs_products,
)
from modeling import flops
from modeling.blip2 import Stage2, Stage2Config, stage2_config
from modeling.language import adapters
from modeling.names import huggingface_names
from modeling.precision import DTYPES
from modeling.vision.encoders import freeze

EOL = 4
FAMILIES = {"opt": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM}


def stage2_case(args: Any, name: str, lengths: Sequence[int]) -> Case:
    """Stage 2 of ours and of Hugging Face's BLIP-2, with a language model of random weights.

    Args:
        args: options of the benchmark.
        name: language model, one of the size's.
        lengths: tokens of each text, its end token included.
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
        module = _huggingface(args, config, adapter)
        inputs = _huggingface_inputs(adapter, texts, config.qformer.queries, made.vocab_size - 1)

        def losses() -> dict[str, Tensor]:
            # Their masks are bool and their tokens the model's dtype.
            return {"loss": module(pixel_values=images(), **inputs).loss}

        return Contender(module, losses)

    given, targets = _mean_lengths(kind, lengths)
    sizes = flops.language_sizes(made)
    total = flops.stage2_work(config, size.image_tokens).trained + encoder_flops(size)
    total += flops.language_flops(sizes, config.qformer.queries + given, targets)
    make = {"ours": ours} | with_torchs_products(args, ours)
    return Case(f"stage 2, {name}", len(lengths), total / 1e9, make | {"Hugging Face": theirs})


class Given(nn.Module):
    """Stand-in for Hugging Face's vision model: it norms image tokens that are given."""

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


def _huggingface(args: Any, config: Stage2Config, adapter: Any) -> Any:
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
    with torch.device("meta"):  # weights of its own would be an XXL's in fp32 on the CPU, 44 GB
        plain = type(adapter.model)(adapter.model.config)
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
    """The same frozen tensors in a model whose modules are still transformers' own."""
    plain.load_state_dict(model.state_dict(), assign=True)
    left = [name for name, tensor in plain.named_buffers() if tensor.is_meta]
    assert not left, f"buffers that no state dict holds: {left}"
    return freeze(plain.to(args.device))


def _huggingface_inputs(
    adapter: Any, texts: list[str], queries: int, image: int
) -> dict[str, Tensor]:
    """Hugging Face's inputs and labels for the texts that our adapter is given."""
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
    """Numbers in [0, 1) that choose where each text is split, the same for both sides."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(len(texts), generator=generator, dtype=torch.float64)


def _padded(rows: list[list[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def _mean_lengths(kind: str, lengths: Sequence[int]) -> tuple[float, float]:
    """Mean tokens that are given beside the queries, and that are learned, of the longest text."""
    text = max(lengths)
    return (0.0, float(text)) if kind == "opt" else flops.split_text(text)
