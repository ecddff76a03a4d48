"""The masks against matrices drawn by hand: two queries, three text tokens, the last padding."""

import torch

from modeling.masks import contrastive_mask, generation_mask, matching_mask

TEXT_MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


def drawn(rows: str) -> torch.Tensor:
    return torch.tensor(
        [[cell == "1" for cell in row.split()] for row in rows.strip().splitlines()]
    )


def test_contrastive_keeps_queries_and_text_apart():
    mask = contrastive_mask(TEXT_MASK, 2)
    assert mask.shape == (2, 1, 5, 5)
    assert torch.equal(
        mask[0, 0],
        drawn("""
            1 1 . . .
            1 1 . . .
            . . 1 1 .
            . . 1 1 .
            . . 1 1 ."""),
    )
    assert mask[1, 0, 2:, 4].all()


def test_matching_lets_everything_see_all_but_padding():
    mask = matching_mask(TEXT_MASK, 2)
    assert torch.equal(mask[0, 0], drawn("\n".join(["1 1 1 1 ."] * 5)))
    assert mask[1].all()


def test_generation_is_causal_in_text_and_hides_text_from_queries():
    mask = generation_mask(TEXT_MASK, 2)
    assert torch.equal(
        mask[0, 0],
        drawn("""
            1 1 . . .
            1 1 . . .
            1 1 1 . .
            1 1 1 1 .
            1 1 1 1 ."""),
    )
    assert mask[1, 0, 4].all()
