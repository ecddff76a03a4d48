"""Texts that are drawn: the same for a key in any batch, and from the model's distribution."""

import pytest
import torch

from modeling.language.drawing import SampledSettings, _Drawing


def draw(logits_RV: torch.Tensor, steps: int, **settings) -> torch.Tensor:
    drawing = _Drawing(SampledSettings(max_new_tokens=steps, **settings))
    ids = torch.zeros(len(logits_RV), 1, dtype=torch.long)
    return torch.stack([drawing(ids, logits_RV).argmax(-1) for _ in range(steps)], dim=1)


def test_a_row_is_drawn_alike_in_any_batch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 50)
    keys = ("a", "b", "c")
    together = draw(logits, 8, keys=keys)
    assert torch.equal(together[1:2], draw(logits[1:2], 8, keys=("b",)))
    assert not torch.equal(together[1:2], draw(logits[1:2], 8, keys=("b",), seed=1))
    picked = SampledSettings(keys=keys).of_rows([2, 0])
    assert picked.keys == ("c", "a")
    assert SampledSettings().of_rows([4, 7]).keys == ("4", "7")


def test_draws_follow_the_nucleus() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    rows = probabilities.log().expand(400, 4)
    found = draw(rows, 5, top_p=0.9).flatten().bincount(minlength=4) / 2000
    kept = torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95
    assert torch.allclose(found.double(), kept.double(), atol=0.04)
    cold = draw(rows, 5, temperature=0.01)
    assert (cold == 0).all()


@pytest.mark.parametrize("wrong", [{"beams": 2}, {"top_p": 0.0}, {"temperature": 0.0}])
def test_settings_that_draw_nothing_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).replace("beams", "beams = 2")):
        SampledSettings(**wrong)


def test_each_row_has_a_key() -> None:
    with pytest.raises(ValueError, match="2 keys for 3 texts"):
        draw(torch.zeros(3, 4), 1, keys=("a", "b"))
