"""Products by either library are torch's, with their gradients, and are counted by its counter."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modeling import linear as linear_module
from modeling.linear import (
    CHOICES,
    Choices,
    Linear,
    faster_products,
    input_product,
    library,
    linear,
    product,
    products_by,
    weight_product,
)

needs_onednn = pytest.mark.skipif(linear_module._OP is None, reason="torch without oneDNN")
LIBRARIES = ["torch", pytest.param("onednn", marks=needs_onednn)]


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(300, 128), (4, 75, 128)])
def test_values_and_gradients_are_torchs(shape, bias, name):
    torch.manual_seed(0)
    layer, x = Linear(128, 130, bias=bias), torch.randn(shape, requires_grad=True)
    results = []
    for theirs in (False, True):
        layer.zero_grad(), setattr(x, "grad", None)
        with products_by(name):
            out = F.linear(x, layer.weight, layer.bias) if theirs else layer(x)
        (out * torch.linspace(-1, 1, 130)).sum().backward()
        results.append([out.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())])
    for mine, torchs in zip(*results, strict=True):
        assert torch.allclose(mine, torchs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_three_products_without_gradients_are_those_of_a_layer(name):
    torch.manual_seed(0)
    x, weight, grad = torch.randn(40, 128), torch.randn(130, 128), torch.randn(40, 130)
    with products_by(name):
        made = product(x, weight), input_product(grad, weight), weight_product(grad, x)
    for mine, torchs in zip(made, (x @ weight.t(), grad @ weight, grad.t() @ x), strict=True):
        assert torch.allclose(mine, torchs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_need_not_have_a_gradient_gets_none(name):
    layer, x = Linear(128, 130), torch.randn(300, 128)
    with products_by(name):
        layer(x).sum().backward()
        assert x.grad is None and layer.weight.grad is not None
        layer.requires_grad_(False).zero_grad()
        layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None and layer.weight.grad is None


@needs_onednn
def test_the_backward_pass_takes_the_libraries_of_the_forward_pass(monkeypatch):
    made = []
    monkeypatch.setattr(
        linear_module, "_onednn", lambda x, w, b=None: made.append(w.shape) or F.linear(x, w, b)
    )
    layer, x = Linear(128, 130), torch.randn(300, 128, requires_grad=True)
    with products_by("onednn"):
        out = layer(x)
    with products_by("torch"):
        out.sum().backward()
    assert made == [(130, 128), (128, 130), (128, 300)]


@needs_onednn
def test_a_library_is_chosen_once_a_layer_by_the_faster_time(monkeypatch):
    asked = []

    def faster(kind, out, width):
        asked.append((kind, out, width))
        return "torch" if kind == "weight" or (out, width) == (96, 256) else "onednn"

    monkeypatch.setattr(linear_module, "_faster", faster)
    choices = Choices()
    for _ in range(2):
        assert choices.library("forward", 256, 96) == "onednn"
        assert choices.library("forward", 96, 256) == "torch"
        assert choices.library("weight", 256, 96) == "torch"
    # Where torch's is ahead on the shape that stands for all, no other is timed.
    probe = linear_module._PROBE
    assert asked == [
        *[("forward", *probe), ("forward", 256, 96)],
        *[("forward", *probe), ("forward", 96, 256)],
        ("weight", *probe),
    ]


def test_choices_that_were_written_down_are_followed_without_a_timing(monkeypatch):
    monkeypatch.setattr(linear_module, "_faster", None)  # a timing would end in an error
    choices = Choices()
    choices.follow({"input 200x300": "onednn"})
    assert choices.library("input", 200, 300) == "onednn"


def test_choices_are_kept_for_the_next_process(monkeypatch, tmp_path):
    monkeypatch.setattr(linear_module, "_faster", lambda *_: "torch")
    first, second = Choices(), Choices()
    first.keep_in(tmp_path / "cache")
    first.library("forward", 200, 300)
    second.keep_in(tmp_path / "cache")
    assert second.made == {"forward 200x300": "torch"}
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_text("{damaged")
    third = Choices()
    third.keep_in(tmp_path / "cache")
    assert third.made == {}


@needs_onednn
def test_the_timing_gives_a_library_for_each_kind_of_product():
    for kind in ("forward", "input", "weight"):
        assert linear_module._faster(kind, 64, 320) in ("torch", "onednn")
        assert CHOICES.library(kind, 64, 320) == CHOICES.made[f"{kind} 64x320"]


def test_the_environment_decides_where_it_names_a_library():
    code = "from modeling.linear import library; print(library('forward', 512, 512))"

    def ask(name):
        return subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"ISTHMUS_PRODUCTS": name},
            capture_output=True,
            text=True,
            check=False,
        )

    assert ask("torch").stdout == "torch\n" and ask("onednn").stdout == "onednn\n"
    assert "ISTHMUS_PRODUCTS=mkl: give auto, torch or onednn" in ask("mkl").stderr


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_torchs(dtype):
    x, weight = torch.randn(16, 128, dtype=dtype), torch.randn(128, 128, dtype=dtype)
    with products_by("onednn"):
        assert torch.equal(linear(x, weight), F.linear(x, weight))
        assert torch.equal(product(x, weight), x @ weight.t())


def test_autocast_keeps_torchs():
    x, weight = torch.randn(16, 128), torch.randn(128, 128)
    with torch.autocast("cpu", torch.bfloat16), products_by("onednn"):
        assert linear(x, weight).dtype == torch.bfloat16


def test_what_is_forced_holds_inside_only():
    before = library("forward", 128, 128)
    with products_by("onednn"):
        assert library("forward", 128, 128) == "onednn"
    assert library("forward", 128, 128) == before


@pytest.mark.parametrize("name", LIBRARIES)
def test_flops_are_counted_forward_and_backward(name):
    layer, x = Linear(128, 130), torch.randn(2, 150, 128, requires_grad=True)
    with FlopCounterMode(display=False) as counter, products_by(name):
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 300 * 128 * 130


def test_foreign_modules_keep_their_weights_and_other_types():
    class Odd(nn.Linear):
        pass

    module = nn.Sequential(nn.Linear(4, 4), Odd(4, 4), nn.LayerNorm(4))
    names = dict(module.state_dict())
    faster = faster_products(module)
    assert [type(part) for part in faster] == [Linear, Odd, nn.LayerNorm]
    assert all(torch.equal(faster.state_dict()[name], tensor) for name, tensor in names.items())


def test_products_with_small_weights_stay_with_torch():
    x, weight = torch.randn(512, 64), torch.randn(64, 64)
    with products_by("onednn"):
        assert torch.equal(linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize("name", LIBRARIES)
def test_no_rows_at_all_are_no_rows_and_no_gradient(name):
    layer, x = Linear(128, 130), torch.zeros(0, 128, requires_grad=True)
    with products_by(name):
        out = layer(x)
        out.sum().backward()
    assert out.shape == (0, 130) and not layer.weight.grad.any()
