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
