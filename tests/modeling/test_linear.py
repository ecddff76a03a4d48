"""Products by oneDNN are torch's, with their gradients, and are counted by torch's counter."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modeling.linear import Linear, by_onednn, faster_products, linear, product, torchs_products

needs_onednn = pytest.mark.skipif(
    not by_onednn(torch.ones(2, 128), torch.ones(128, 128)), reason="torch without oneDNN"
)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(300, 128), (4, 75, 128)])
def test_values_and_gradients_are_torchs(shape, bias):
    torch.manual_seed(0)
    layer, x = Linear(128, 130, bias=bias), torch.randn(shape, requires_grad=True)
    results = []
    for theirs in (False, True):
        layer.zero_grad(), setattr(x, "grad", None)
        out = F.linear(x, layer.weight, layer.bias) if theirs else layer(x)
        (out * torch.linspace(-1, 1, 130)).sum().backward()
        results.append([out.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())])
    assert by_onednn(x, layer.weight)
    for mine, torchs in zip(*results, strict=True):
        assert torch.allclose(mine, torchs, rtol=1e-4, atol=1e-4)


def test_what_need_not_have_a_gradient_gets_none():
    layer, x = Linear(128, 130), torch.randn(300, 128)
    layer(x).sum().backward()
    assert x.grad is None and layer.weight.grad is not None
    layer.requires_grad_(False).zero_grad()
    layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None and layer.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_torchs(dtype):
    x, weight = torch.randn(512, 128, dtype=dtype), torch.randn(128, 128, dtype=dtype)
    assert not by_onednn(x, weight)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert torch.equal(product(x, weight), x @ weight.t())


def test_autocast_and_the_comparison_switch_keep_torchs():
    x, weight = torch.randn(512, 128), torch.randn(128, 128)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    with torchs_products():
        assert not by_onednn(x, weight)


@needs_onednn
def test_flops_are_counted_forward_and_backward():
    layer, x = Linear(128, 130), torch.randn(2, 150, 128, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
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
    assert not by_onednn(torch.ones(512, 64), torch.ones(64, 64))


def test_no_rows_at_all_are_no_rows_and_no_gradient():
    layer, x = Linear(128, 130), torch.zeros(0, 128, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert out.shape == (0, 130) and not layer.weight.grad.any()
