"""Recall of image-text retrieval. Shape suffixes: I images, T texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def recalls(
    scores_IT: Tensor,
    image_of_text: Sequence[int],
    cutoffs: Sequence[int] = (1, 5, 10),
    image_scores_IT: Tensor | None = None,
) -> dict[str, float]:
    """Recall of text retrieval (TR) and image retrieval (IR) at each cutoff.

    Where wrong answers share the score of the best right one, the hit counts by the share of their
    orders in which the right one is found: two images with the same caption, word for word, find
    each other in half of the cases, and a constant score is worth chance.

    Args:
        scores_IT: score of each pair, a row an image; ``-inf`` marks pairs that were not retrieved.
        image_of_text: for each text the row of its image.
        image_scores_IT: scores for image retrieval; None: ``scores_IT`` serves both directions.

    Returns:
        ``tr_r1, tr_r5, … ir_r10``, each between 0 and 1. In TR any text of an image is right.

    Raises:
        ValueError: a score is NaN, a shape is wrong, or an image has no text.
    """
    found = hits(scores_IT, image_of_text, cutoffs, image_scores_IT)
    return {name: float(of_query.mean()) for name, of_query in found.items()}


def hits(
    scores_IT: Tensor,
    image_of_text: Sequence[int],
    cutoffs: Sequence[int] = (1, 5, 10),
    image_scores_IT: Tensor | None = None,
) -> dict[str, Tensor]:
    """The hit of every query, whose mean ``recalls`` are: of images in TR, of texts in IR, fp64.

    Arguments and errors are those of ``recalls``.
    """
    images, texts = scores_IT.shape
    owner = torch.as_tensor(image_of_text)
    if owner.shape != (texts,):
        raise ValueError(f"image_of_text names {len(image_of_text)} texts; scores have {texts}")
    by_text_IT = scores_IT if image_scores_IT is None else image_scores_IT
    if torch.isnan(scores_IT).any() or torch.isnan(by_text_IT).any():
        raise ValueError("retrieval scores hold NaN; the checkpoint's embeddings are broken")
    right_IT = owner[None, :] == torch.arange(images)[:, None]
    if not right_IT.any(dim=1).all():
        empty = int((~right_IT.any(dim=1)).nonzero()[0])
        raise ValueError(f"image {empty} has no text; each image needs at least one caption")
    sides = (
        ("tr", _Ranks.of(scores_IT, right_IT)),
        ("ir", _Ranks.of(by_text_IT.T, right_IT.T)),
    )
    return {f"{side}_r{cutoff}": ranks.hits(cutoff) for side, ranks in sides for cutoff in cutoffs}


@dataclass(frozen=True)
class _Ranks:
    """Place of the best right answer of each query.

    Attributes:
        above: number of answers with a higher score.
        tied_wrong: number of wrong answers with the same score.
        tied_right: number of right answers with the same score, itself included.
        retrieved: whether the right answer was retrieved at all.
    """

    above: Tensor
    tied_wrong: Tensor
    tied_right: Tensor
    retrieved: Tensor

    @classmethod
    def of(cls, scores: Tensor, right: Tensor) -> "_Ranks":
        best = scores.masked_fill(~right, float("-inf")).amax(dim=1, keepdim=True)
        tied = scores == best
        return cls(
            above=(scores > best).sum(dim=1),
            tied_wrong=(tied & ~right).sum(dim=1),
            tied_right=(tied & right).sum(dim=1),
            retrieved=~best.squeeze(1).isneginf(),
        )

    def hits(self, cutoff: int) -> Tensor:
        """Per query the probability that a right answer is among the first ``cutoff``, fp64."""
        missed = torch.ones(len(self.above), dtype=torch.float64)
        for place in range(cutoff):  # the probability that this tied place is a wrong answer too
            left_wrong = (self.tied_wrong - place).clamp(min=0)
            share = left_wrong / (left_wrong + self.tied_right).double()
            missed = torch.where(self.above + place < cutoff, missed * share, missed)
        return torch.where(self.retrieved, 1 - missed, 0.0)
