"""Losses on cases small enough to compute by hand, and the draw of hard negatives."""

import math

import pytest
import torch

from modeling import losses


def test_similarity_is_the_best_query():
    image = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    text = torch.tensor([[0.6, 0.8], [-1.0, 0.0]])
    assert torch.allclose(losses.image_to_text_similarity(image, text), torch.tensor([[0.8, 0.0]]))
    assert torch.allclose(
        losses.text_to_image_similarity(text, image), torch.tensor([[0.8], [0.0]])
    )


def test_targets_are_uniform_over_equal_ids_and_smoothed():
    same = torch.tensor([[True, True, False, False], [False, False, False, True]])
    targets = losses.itc_targets(same, 0.1)
    assert torch.allclose(targets[0], torch.tensor([0.475, 0.475, 0.025, 0.025]))
    assert torch.allclose(targets[1], torch.tensor([0.025, 0.025, 0.025, 0.925]))


def test_itc_by_hand():
    image_logits = torch.tensor([[math.log(3.0), 0.0]])  # softmax 3/4, 1/4
    text_logits = torch.tensor([[0.0, 0.0]])  # softmax 1/2, 1/2
    targets = torch.tensor([[0.95, 0.05]])
    by_hand = (-(0.95 * math.log(0.75) + 0.05 * math.log(0.25)) + math.log(2)) / 2
    assert losses.itc_loss(image_logits, text_logits, targets).item() == pytest.approx(by_hand)


def test_itc_without_ids_is_label_smoothing():
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    same = torch.eye(6, dtype=torch.bool)[2:5]
    smoothed = torch.nn.functional.cross_entropy(logits, torch.arange(2, 5), label_smoothing=0.1)
    assert torch.allclose(losses.itc_loss(logits, logits, losses.itc_targets(same, 0.1)), smoothed)


def test_itm_by_hand():
    logits = torch.tensor([[0.0, math.log(4.0)], [math.log(3.0), 0.0], [0.0, 0.0]])
    by_hand = -(math.log(0.8) + math.log(0.75) + math.log(0.5)) / 3
    assert losses.itm_loss(logits, positives=1).item() == pytest.approx(by_hand)


def test_token_loss_by_hand():
    logits = torch.tensor([[math.log(2.0), 0.0, 0.0]])  # softmax 1/2, 1/4, 1/4
    plain = math.log(2)
    smoothed = 0.7 * plain + 0.1 * (math.log(2) + 2 * math.log(4))
    targets = torch.tensor([0])
    assert losses.token_loss(logits, targets).item() == pytest.approx(plain)
    assert losses.token_loss(logits, targets, 0.3).item() == pytest.approx(smoothed)


def test_negatives_follow_the_softmax_without_the_true_pair():
    logits = torch.tensor([[9.0, math.log(1.0), math.log(3.0)]]).repeat(8000, 1)
    same = torch.tensor([[True, False, False]]).repeat(8000, 1)
    torch.manual_seed(0)
    drawn = losses.hard_negatives(logits, same)
    assert not (drawn == 0).any()
    assert (drawn == 2).float().mean().item() == pytest.approx(0.75, abs=0.02)


def test_equal_ids_are_never_negatives():
    logits = torch.tensor([[5.0, 5.0, -50.0, 5.0]])
    same = torch.tensor([[True, True, False, True]])
    assert losses.hard_negatives(logits, same).tolist() == [2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_sampling_survives_what_is_not_a_number(value):
    logits = torch.full((4, 4), value)
    same = torch.eye(4, dtype=torch.bool)
    drawn = losses.hard_negatives(logits, same)
    assert ((drawn >= 0) & (drawn < 4) & (drawn != torch.arange(4))).all()


def test_all_ids_equal_does_not_crash():
    assert losses.hard_negatives(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)).shape == (
        2,
    )


def test_one_pair_in_the_world_is_an_error():
    with pytest.raises(ValueError, match="batch size is 1 over all ranks"):
        losses.hard_negatives(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))


def test_multinomial_is_the_only_randomness(monkeypatch):
    monkeypatch.setattr(torch, "multinomial", lambda w, n, **_: w.argmax(-1, keepdim=True))
    before = torch.get_rng_state()
    logits = torch.tensor([[9.0, 1.0, 2.0], [3.0, 9.0, 2.0]])
    assert losses.hard_negatives(logits, torch.eye(3, dtype=torch.bool)[:2]).tolist() == [2, 0]
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture(params=[True, False])
def rows_of_zeros(request, monkeypatch):
    """Twenty words get four rows of zeros, as an unaligned number of words gets on a GPU."""
    if request.param:
        monkeypatch.setattr(losses, "ALIGNED_ON", ("cpu",))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("smoothing", "chunk"), [(0.0, 40), (0.1, 40), (0.1, 1 << 20)])
@pytest.mark.usefixtures("rows_of_zeros")
def test_head_loss_is_the_loss_of_its_logits(frozen, bias, smoothing, chunk):
    torch.manual_seed(0)
    hidden, targets = torch.randn(9, 8, requires_grad=True), torch.randint(0, 20, (9,))
    targets[[2, 8]] = losses.IGNORED
    head = torch.nn.Linear(8, 20, bias=bias).requires_grad_(not frozen)
    inputs = [hidden, *(() if frozen else head.parameters())]
    found = losses.head_loss(
        hidden, head.weight, head.bias, targets, smoothing=smoothing, chunk=chunk
    )
    expected = losses.token_loss(head(hidden), targets, smoothing)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    pairs = zip(
        torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * expected, inputs),
        strict=True,
    )  # fmt: skip
    assert all(torch.allclose(mine, theirs, atol=1e-5) for mine, theirs in pairs)


def test_head_loss_sums_the_heads_gradient_in_fp32():
    """In bf16 the parts of many chunks would be rounded again and again."""
    torch.manual_seed(0)
    hidden, targets = torch.randn(256, 8), torch.zeros(256, dtype=torch.long)
    weight = torch.randn(20, 8)
    gradients = {}
    for dtype in (torch.float32, torch.bfloat16):
        parts = [t.to(dtype).requires_grad_() for t in (hidden, weight)]
        loss = losses.head_loss(*parts, None, targets, chunk=40)
        gradients[dtype] = torch.autograd.grad(loss, parts)
        assert loss.dtype == torch.float32
        assert [g.dtype for g in gradients[dtype]] == [dtype] * 2
    one, other = (gradients[d][1].float() for d in (torch.float32, torch.bfloat16))
    assert (one - other).norm() / one.norm() < 5e-3


def test_head_loss_keeps_no_logits():
    """Of 4 times the rows, only the hidden states are 4 times as large."""
    sizes = []
    weight = torch.randn(500, 4, requires_grad=True)
    for rows in (16, 64):
        held = 0

        def keep(tensor):
            nonlocal held
            held += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = torch.randn(rows, 4, requires_grad=True)
            loss = losses.head_loss(hidden, weight, None, torch.zeros(rows, dtype=torch.long))
        sizes.append(held)
    assert max(sizes) < 500
    loss.backward()
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


def test_the_race_draws_what_multinomial_draws():
    weights = torch.rand(50, 9, generator=torch.Generator().manual_seed(0))
    weights[:, 3] = 0
    torch.manual_seed(1)
    expected = torch.multinomial(weights, 1)[:, 0]
    torch.manual_seed(1)
    assert torch.equal(losses.draw_by_race(weights), expected)
