"""Formulas against torch's count of what the code computes, and against the design's figures."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from jobs.recipes.published import flan_t5
from jobs.recipes.published import opt as opt_config
from modeling.blip2 import Stage1, Stage1Config, Stage2, Stage2Config, WithEncoder
from modeling.flops import (
    Stack,
    VitSizes,
    language_flops,
    language_sizes,
    split_text,
    stage1_work,
    stage2_work,
    vit_flops,
    vit_sizes,
)
from modeling.language.adapters import DecoderLM, EncoderDecoderLM
from modeling.qformer import QFormerConfig
from modeling.vision.encoders import EvaConfig, build_eva_encoder
from tests.modeling.tiny import VOCAB, batch, qformer_config, stage1_config
from tests.modeling.tiny_language import opt, t5, tokenizer

LIMIT = 0.02


def counted(compute) -> int:
    """FLOPs of a computation and, where it gives a loss, its backward pass."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = compute()
        if result.requires_grad:
            result.sum().backward()
    return counter.get_total_flops()


def tiny_encoder(image_size: int = 28):
    return build_eva_encoder(EvaConfig(width=24, blocks=2, heads=2, mlp=56, patch=7), image_size)


def test_the_encoder_frozen_and_trained():
    encoder, images = tiny_encoder(), torch.randn(2, 3, 28, 28)
    sizes = vit_sizes(encoder.vit)
    assert counted(lambda: encoder(images)) == 2 * vit_flops(sizes, trained=True)
    encoder.requires_grad_(False)
    assert counted(lambda: encoder(images)) == 2 * vit_flops(sizes, trained=False)


@pytest.mark.parametrize("itg", [True, False])
def test_stage1(itg):
    base = stage1_config()
    config = Stage1Config(base.qformer, base.embed, dec_token_id=VOCAB - 1, itg=itg)
    model, (tokens, ids, _) = Stage1(config), batch(4)
    mask = torch.ones_like(ids)  # the head is counted on real tokens only: no padding here
    parts = stage1_work(config, tokens.shape[1], ids.shape[1], batch=4)
    expected = 4 * sum(work.trained for work in parts.values())
    assert set(parts) == {"image keys and values", "itc", "itm"} | ({"itg"} if itg else set())
    got = counted(lambda: model(tokens, ids, mask)["loss"])
    assert got == pytest.approx(expected, rel=1e-3)  # a row too many in one layer is seen


@pytest.mark.parametrize("question", [0, 7])
def test_stage2_with_an_encoder_that_trains(question):
    encoder, images = tiny_encoder(), torch.randn(2, 3, 28, 28)
    config = Stage2Config(qformer_config(text=question > 0), llm_width=20)
    model = WithEncoder(encoder, Stage2(config))
    text = []
    if question:
        text = [torch.ones(2, question, dtype=torch.long)] * 2
    expected = 2 * vit_flops(vit_sizes(encoder.vit), trained=True)
    expected += 2 * stage2_work(config, encoder.num_tokens, question, learned=True).trained
    assert counted(lambda: model(images, *text)) == pytest.approx(expected, rel=LIMIT)


@pytest.mark.parametrize("family", ["opt", "t5"])
def test_frozen_language_models(family):
    torch.manual_seed(0)
    queries, texts = 3, ["w1 w2 w3 w4 w5", "w6 w7 w8 w9 w1"]
    model = (opt if family == "opt" else t5)()
    model.config._attn_implementation = "eager"
    prompts = torch.randn(2, queries, 20, requires_grad=True)
    if family == "opt":
        language = DecoderLM(model, tokenizer("<s> $A"))
        given, targets = queries, 7.0  # <s>, five words, the end of the line
    else:
        language = EncoderDecoderLM(model, tokenizer("$A </s>"))
        given, targets = queries + 3.0, 6.0  # "<s>"-free prompt of two words and its end
    told = None if family == "opt" else ["w1 w2", "w3 w4"]
    sizes = language_sizes(model.config)
    expected = 2 * language_flops(sizes, given, targets)
    got = counted(lambda: language.loss(prompts, texts, prompt_texts=told))
    assert got == pytest.approx(expected, rel=LIMIT)


def test_a_language_model_with_shared_heads_and_a_gated_mlp():
    sizes = {"hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "vocab_size": 50}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).requires_grad_(False)
    embedded = torch.randn(1, 9, 32, requires_grad=True)
    expected = language_flops(language_sizes(config), given=0, targets=9)
    got = counted(lambda: model(inputs_embeds=embedded).logits)
    assert got == pytest.approx(expected, rel=LIMIT)


def test_the_vision_tower_at_three_sizes():
    """training.md: 521 / 1434 / 2745 GFLOP."""
    stack = Stack(1408, 39, 6144, 1408, 1408)
    for tokens, figure in ((257, 521), (677, 1434), (1226, 2745)):
        flops = vit_flops(VitSizes(stack, tokens, patch=14), trained=False)
        assert flops / 1e9 == pytest.approx(figure, abs=0.7)


def test_stage1_figure():
    """701 GFLOP with shared image keys and values, 761 without; 7 less where no gradient of the
    image tokens is computed.
    """
    parts = stage1_work(Stage1Config(), 257, 32, batch=1680, learned=True)
    total = 521e9 + sum(work.trained for work in parts.values())
    assert total / 1e9 == pytest.approx(701, rel=LIMIT)
    extra = 3 * 3 * parts["image keys and values"].forward  # ITM's three rows project anew
    assert (total + extra) / 1e9 == pytest.approx(761, rel=LIMIT)
    frozen = stage1_work(Stage1Config(), 257, 32, batch=1680)
    saved = total - 521e9 - sum(work.trained for work in frozen.values())
    assert saved / 1e9 == pytest.approx(6.7, rel=LIMIT)


@pytest.mark.parametrize(
    ("config", "figure"),
    [
        (opt_config(2560), 1239),
        (opt_config(4096), 2266),
        (flan_t5(2048), 913),
        (flan_t5(4096), 1962),
    ],
)
def test_stage2_figures(config, figure):
    sizes = language_sizes(config)
    given, targets = (0.0, 32.0) if sizes.encoder is None else split_text(32)
    stage = Stage2Config(QFormerConfig(text=False), sizes.decoder.width)
    work = 521e9 + stage2_work(stage, 257).trained + language_flops(sizes, 32 + given, targets)
    assert work / 1e9 == pytest.approx(figure, rel=LIMIT)


def test_saved_activations_are_those_that_autograd_keeps():
    """The estimate of ``--dry-run``, against the tensors a frozen and a training tower hold."""
    encoder = tiny_encoder(56)
    sizes = vit_sizes(encoder.vit)
    images = torch.randn(2, 3, 56, 56)
    known = {p.untyped_storage().data_ptr() for p in (*encoder.parameters(), images)}
    for trained in (True, False):
        encoder.requires_grad_(trained)
        encoder.vit.pos_embed.requires_grad_(True)  # a gradient passes all the blocks
        held: dict[int, int] = {}

        def keep(tensor, held=held):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                held[storage.data_ptr()] = storage.nbytes() // 4
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            tokens = encoder(images)  # noqa: F841  keeps the graph alive
        expected = 2 * sizes.stack.saved(sizes.tokens, trained)
        assert sum(held.values()) == pytest.approx(expected, rel=0.05)
