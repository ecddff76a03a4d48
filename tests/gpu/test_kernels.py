"""Fused attention is what runs on a GPU, seen in the profiler, in the models that train in bf16."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from jobs.benchmarks import train_contenders as cases
from jobs.recipes import published
from modeling import losses
from modeling.blip2 import Stage1, Stage1Config, Stage2, stage2_config
from modeling.language.adapters import DecoderLM, EncoderDecoderLM
from modeling.qformer import QFormerConfig
from modeling.vision.encoders import EvaConfig, build_clip_encoder, build_eva_encoder, freeze
from tests.gpu.needs import GPU, ON_GPU

pytestmark = ON_GPU
FUSED = (
    "flash_attention",
    "efficient_attention",
    "cudnn_attention",
    "fused_attention_overrideable",
)
UNFUSED = "aten::_scaled_dot_product_attention_math"
LAYERS = 2


def attention(run: Callable[[], Any]) -> dict[str, int]:
    """How often each way to attend was taken."""
    run()  # the first call may choose kernels
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        run()
        torch.cuda.synchronize()
    counts: dict[str, int] = {}
    for event in recorded.key_averages():
        if "_scaled_dot_product" in event.key:
            counts[event.key] = event.count
    return counts


def fused(counts: dict[str, int], backward: bool) -> int:
    """Calls of fused kernels, of one direction."""
    return sum(
        count
        for name, count in counts.items()
        if any(kind in name for kind in FUSED) and name.endswith("_backward") == backward
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: build_eva_encoder(EvaConfig(blocks=LAYERS), 224),
        lambda: build_clip_encoder(published.clip_vit_l(), 224),
    ],
    ids=["ViT-g", "ViT-L"],
)
def test_image_encoders_attend_by_a_fused_kernel(make):
    with torch.device(GPU):
        tower = freeze(make(), torch.bfloat16)
        images = torch.randn(2, 3, 224, 224).bfloat16()

    @torch.no_grad()
    def see() -> None:
        tower(images)

    counts = attention(see)
    assert UNFUSED not in counts and fused(counts, backward=False) == len(tower.vit.blocks), counts


def test_the_qformer_attends_by_fused_kernels_forward_and_backward():
    config = Stage1Config(QFormerConfig(layers=LAYERS))
    with torch.device(GPU):
        stage = Stage1(config).bfloat16()
        tokens = torch.randn(4, 257, 1408).bfloat16()
    ids, mask = cases.text_batch([9, 12, 32, 5], 30_000, "cuda")

    def step() -> None:
        stage(tokens, ids, mask)["loss"].backward()

    counts = attention(step)
    assert UNFUSED not in counts, counts
    # ITC's image and text, ITM and ITG pass the layers; the first of two layers sees the image.
    assert fused(counts, backward=False) >= 4 * LAYERS
    assert fused(counts, backward=True) >= 4 * LAYERS


@pytest.mark.parametrize(
    ("config", "family", "attentions"),
    [
        pytest.param(lambda: published.opt(2560), DecoderLM, LAYERS, id="OPT-2.7B"),
        pytest.param(lambda: published.flan_t5(2048), EncoderDecoderLM, 3 * LAYERS, id="FlanT5-XL"),
    ],
)
def test_language_models_attend_by_fused_kernels(config, family, attentions):
    sizes = config()
    for name in ("num_hidden_layers", "num_layers", "num_decoder_layers"):
        if hasattr(sizes, name):
            setattr(sizes, name, LAYERS)
    kind = "opt" if family is DecoderLM else "t5"
    with torch.device(GPU):
        model = cases.FAMILIES[kind].from_config(sizes, dtype=torch.bfloat16)
        stage = Stage2(stage2_config(Stage1Config(QFormerConfig(layers=LAYERS)), sizes.hidden_size))
        tokens = torch.randn(4, 257, 1408).bfloat16()
    stage.bfloat16()
    language = family(model, cases.tokenizer(sizes.vocab_size, kind))
    texts = cases.random_texts([7, 12, 30, 4], sizes.vocab_size)
    alone = attention(lambda: stage(tokens).sum().backward())
    both = attention(lambda: language.loss(stage(tokens), texts).backward())
    assert UNFUSED not in both, both
    for backward in (False, True):
        assert fused(both, backward) - fused(alone, backward) >= attentions - 1, both


def test_berts_odd_number_of_words_gets_aligned_products():
    """Without padding the products of 30,523 words run in kernels for unaligned memory."""
    hidden = torch.randn(512, 768, device=GPU, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(30_523, 768, device=GPU, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.arange(512, device=GPU)

    def learn() -> None:
        losses.head_loss(hidden, weight, None, targets).backward()

    learn()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        learn()
        torch.cuda.synchronize()
    names = [event.key for event in recorded.key_averages()]
    assert any("gemm" in name or "nvjet" in name for name in names), names
    assert not [name for name in names if "align1>" in name or "align2>" in name]
