"""Dropout by 16-bit draws: its rate, its scale, its gradient, its place in the random stream."""

import pytest
import torch

from modeling.dropout import Dropout, dropout


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_rate_scale_and_gradient(rate):
    torch.manual_seed(0)
    x = torch.ones(101, 997, requires_grad=True)
    y = dropout(x, rate)
    assert (y == 0).float().mean().item() == pytest.approx(rate, abs=0.005)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    assert y[y > 0].unique().item() == pytest.approx(1 / (1 - rate), rel=1e-4)
    (2 * y).sum().backward()
    assert torch.equal(x.grad, 2 * y.detach())


def test_draws_follow_the_seed_and_move_on():
    x, layer = torch.ones(7, 5, 3), Dropout(0.5)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)
    assert torch.equal(layer.eval()(x), x)


def test_neighbours_are_independent():
    """The four draws of a 64-bit number, and elements of neighbouring numbers."""
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(1 << 20), 0.1) == 0).double() - 0.1
    for apart in (1, 2, 3, 4, 8):
        assert abs((dropped[apart:] * dropped[:-apart]).mean().item()) < 5e-4


def test_bf16_and_everything_dropped():
    assert dropout(torch.ones(9, dtype=torch.bfloat16), 0.3).dtype == torch.bfloat16
    assert not dropout(torch.ones(9), 1.0).any()
    assert dropout(torch.ones(0, 4), 0.5).shape == (0, 4)
