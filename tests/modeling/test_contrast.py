"""Micro-batches that see the whole step's samples: the losses and gradients of one big batch."""

from functools import partial

import pytest
import torch
from torch import Tensor

from modeling import contrast
from tests.modeling.tiny import accumulated, batch, sharp_stage1

IMAGE_IDS = torch.tensor([7, 1, 2, 3, 7, 4, 5, 7])
DRAWS = torch.rand(8, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def whole(size: int = 8) -> tuple[Tensor, ...]:
    tokens, ids, mask = batch(size, length=9)
    mask[:2, 6:], ids[:2, 6:] = 0, 0
    return tokens, ids, mask, IMAGE_IDS[:size], DRAWS[:size]


def cut(inputs: tuple[Tensor, ...], micro: int) -> list[contrast.Pairs]:
    """Micro-batches, each padded to its own longest text and with a seed of its own."""
    pairs = []
    for start in range(0, inputs[0].shape[0], micro):
        tokens, ids, mask, image_ids, draws = (t[start : start + micro] for t in inputs)
        longest = int(mask.sum(1).max())
        seed = partial(torch.manual_seed, start)
        texts = ids[:, :longest], mask[:, :longest]
        pairs.append(contrast.Pairs(lambda t=tokens: t, *texts, image_ids, draws, seed))
    return pairs


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_micro_batches_give_the_gradient_of_the_one_big_batch(micro):
    expected = accumulated(sharp_stage1(), cut(whole(), 8))
    found = accumulated(sharp_stage1(), cut(whole(), micro))
    assert len(expected) > 100 and found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-5, atol=1e-6), name


def test_plain_accumulation_would_not():
    """What the issue is about: with negatives from the micro-batch only, the losses differ."""
    expected = accumulated(sharp_stage1(), cut(whole(), 8))
    plain = [accumulated(sharp_stage1(), [one]) for one in cut(whole(), 2)]
    itc = torch.stack([losses["itc"] for losses in plain]).mean()
    assert abs(itc - expected["itc"]) > 0.1


def test_with_dropout_both_passes_draw_the_same():
    """The features that the others see are those that the gradient is taken of."""
    model = sharp_stage1(dropout=0.3).train()
    micros = cut(whole(), 2)
    seen: list[contrast.World] = []
    own: list[Tensor] = []

    def watched(*given, **more):
        if more.get("world"):
            seen.append(more["world"])
            micros[len(seen) - 1].seed()
            own.append(model.features(*given[:4]).image_SQE)
            micros[len(seen) - 1].seed()
        return model(*given, **more)

    for losses in contrast.losses_in_turn(watched, micros, frozen=True):
        losses["loss"].backward()
    assert torch.equal(seen[0].own.image_SQE, torch.cat(own))
    again = model.features(*(tensor[:2] for tensor in whole()[:4]))
    assert not torch.equal(seen[0].own.image_SQE[:2], again.image_SQE)  # dropout was on


def test_with_dropout_the_gradient_is_that_of_the_joined_graph():
    """Beside one backward pass through all micro-batches at once, nothing cached."""
    model, micros = sharp_stage1(dropout=0.3).train(), cut(whole(), 2)
    found = accumulated(model, micros)
    other = sharp_stage1(dropout=0.3).train()
    texts = contrast.pad_texts([(m.ids_BL, m.mask_BL) for m in micros])
    parts = []
    for micro, text in zip(micros, texts, strict=True):
        micro.seed()
        parts.append(other.features(micro.images(), *text, micro.image_ids_B))
    world = contrast.World(contrast.join(parts))
    losses = []
    for at, (micro, text) in enumerate(zip(micros, texts, strict=True)):
        micro.seed()
        rest = (micro.image_ids_B, micro.draws_B2)
        losses.append(other(micro.images(), *text, *rest, world=world, start=2 * at)["loss"])
    torch.stack(losses).mean().backward()
    for name, parameter in other.named_parameters():
        assert torch.allclose(found[f"grad.{name}"], parameter.grad, rtol=1e-5, atol=1e-6), name


def test_negatives_depend_on_the_sample_alone():
    """The quantile of a sample's own draw: the same in whatever batch order, and fair."""
    from modeling.losses import hard_negatives

    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    same = torch.tensor([[False, True, False, False]])
    uniform = torch.linspace(0, 1, 4001, dtype=torch.float64)[:-1]
    drawn = hard_negatives(weights.log().expand(4000, 4), same.expand(4000, 4), uniform)
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(shares, torch.tensor([0.125, 0.0, 0.375, 0.5]), atol=1e-3)
    almost_one = torch.tensor([1 - 2**-53], dtype=torch.float64)
    last = torch.tensor([[False, False, False, True]])
    assert hard_negatives(weights.log(), last, almost_one).tolist() == [2]
