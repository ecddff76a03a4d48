"""Schedules at hand-picked steps, decay groups, and layer-wise decay that has its effect."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from modeling.blip2 import Stage1, Stage2, Stage2Config, WithEncoder
from modeling.optim import OptimConfig, learning_rate, parameter_groups, set_learning_rate
from modeling.vision.encoders import EvaConfig, build_eva_encoder
from tests.modeling.tiny import qformer_config, stage1_config

CONFIG = OptimConfig(lr=1.0, min_lr=0.2, warmup_lr=0.1, warmup_steps=10, total_steps=110)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.1),
        (5, 0.55),
        (10, 1.0),
        (60, 0.6),
        (35, 0.2 + 0.8 * (1 + 2**-0.5) / 2),
        (110, 0.2),
        (500, 0.2),
    ],
)
def test_warm_up_then_cosine_per_step(step, rate):
    assert learning_rate(CONFIG, step) == pytest.approx(rate)


def test_every_step_of_the_warm_up_rises_and_of_the_cosine_falls():
    rates = [learning_rate(CONFIG, step) for step in range(111)]
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_biases_norms_queries_and_temperature_are_not_decayed():
    model = Stage1(stage1_config())
    groups = parameter_groups(model, CONFIG)
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    plain = {name for group in groups if not group["weight_decay"] for name in group["names"]}
    assert decayed | plain == {name for name, _ in model.named_parameters()}
    assert {"qformer.query_tokens", "temperature", "ln_vision.weight", "lm_head.bias"} <= plain
    assert not any(name.endswith("bias") or "norm" in name for name in decayed)
    assert {"qformer.word_embeddings.weight", "vision_proj.weight", "itm_head.weight"} <= decayed


def test_weights_laid_one_behind_the_other_begin_aligned():
    """The vocabulary's 203 biases, two of the matching head and the temperature come last."""
    model = Stage1(stage1_config())
    for group in parameter_groups(model, CONFIG):
        start, begins = 0, {}
        for name, parameter in zip(group["names"], group["params"], strict=True):
            begins[name] = start
            start += parameter.numel()
        odd = [n for n, p in zip(group["names"], group["params"], strict=True) if p.numel() % 64]
        assert group["names"][len(begins) - len(odd) :] == odd
        assert all(begins[name] % 64 == 0 for name in begins if name not in odd[1:])
    assert odd[-1] == "temperature"


class Finetuned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.vit = nn.Module()
        self.encoder.vit.pos_embed = nn.Parameter(torch.zeros(1, 2, 2))
        self.encoder.vit.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.head = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_layer_wise_decay_survives_the_schedule():
    model = Finetuned()
    config = OptimConfig(lr=1.0, min_lr=0.0, warmup_steps=0, total_steps=2, layer_decay=0.5)
    optimizer = torch.optim.AdamW(parameter_groups(model, config))
    set_learning_rate(optimizer, learning_rate(config, 1))  # half way: 0.5
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert rates["head.weight"] == pytest.approx(0.5)
    assert rates["encoder.vit.blocks.2.weight"] == pytest.approx(0.25)
    assert rates["encoder.vit.blocks.0.bias"] == pytest.approx(0.0625)
    assert rates["encoder.vit.pos_embed"] == pytest.approx(0.03125)
    assert not any(name.startswith("frozen") for name in rates)


def test_layer_wise_decay_changes_the_size_of_updates():
    """Adam's first step is the rate itself: the encoder's move by their share of it."""
    torch.manual_seed(0)
    encoder = build_eva_encoder(EvaConfig(width=24, blocks=3, heads=2, mlp=32, patch=8), 16)
    stage = Stage2(Stage2Config(qformer_config(text=False), llm_width=8))
    model = WithEncoder(encoder, stage)
    config = OptimConfig(lr=1e-2, warmup_steps=0, total_steps=2, layer_decay=0.5, weight_decay=0.0)
    optimizer = torch.optim.AdamW(parameter_groups(model, config), weight_decay=0.0)
    set_learning_rate(optimizer, learning_rate(config, 0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    moved = {k: float((p.detach() - before[k]).abs().median()) for k, p in model.named_parameters()}
    assert moved["stage.language_proj.weight"] == pytest.approx(1e-2, rel=0.01)
    assert moved["stage.ln_vision.weight"] == pytest.approx(1e-2, rel=0.01)
    for block, share in ((2, 1 / 2), (1, 1 / 4), (0, 1 / 8)):
        name = f"encoder.vit.blocks.{block}.attn.proj.weight"
        assert moved[name] == pytest.approx(share * 1e-2, rel=0.01)
    for name in ("pos_embed", "cls_token", "patch_embed.proj.weight"):
        assert moved[f"encoder.vit.{name}"] == pytest.approx(1e-2 / 16, rel=0.01)


def test_the_bridge_of_llava_has_a_rate_of_its_own():
    model = nn.ModuleDict({"bridge": nn.Linear(4, 4), "language": nn.Linear(4, 4)})
    groups = parameter_groups(model, OptimConfig(lr=1e-5, min_lr=0.0, bridge_lr=1e-3))
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scales["bridge.weight"] == scales["bridge.bias"] == pytest.approx(100)
    assert scales["language.weight"] == scales["language.bias"] == 1
    optimizer = torch.optim.AdamW(groups)
    set_learning_rate(optimizer, 5e-6)
    assert {round(group["lr"], 9) for group in optimizer.param_groups} == {5e-6, 5e-4}


def test_bad_settings_name_the_field():
    with pytest.raises(ValueError, match=r"optim\.warmup_steps = 10"):
        OptimConfig(warmup_steps=10, total_steps=10)
    with pytest.raises(ValueError, match=r"optim\.layer_decay"):
        OptimConfig(layer_decay=0.0)
