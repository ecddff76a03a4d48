"""The three stage-1 losses (paper, section 3.2) as pure functions of tensors; what was gathered is
an argument.

Legend: B local batch, W world batch, Q queries, E shared embedding, R rows of image–text pairs, N
    target tokens, V vocabulary.
All are computed in fp32 whatever the dtype of the inputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def image_to_text_similarity(image_feats_BQE: Tensor, text_feats_WE: Tensor) -> Tensor:
    """Similarity (B, W) of local images to all texts: the maximum over the queries of the dot
    product.
    """
    return torch.einsum("bqe,we->bwq", image_feats_BQE.float(), text_feats_WE.float()).amax(-1)


def text_to_image_similarity(text_feats_BE: Tensor, image_feats_WQE: Tensor) -> Tensor:
    """Similarity (B, W) of local texts to all images: the maximum over the queries of the dot
    product.
    """
    return torch.einsum("be,wqe->bwq", text_feats_BE.float(), image_feats_WQE.float()).amax(-1)


def itc_targets(same_BW: Tensor, smoothing: float) -> Tensor:
    """Soft targets (B, W): uniform over the pairs with equal image ids, mixed with uniform over
    all.

    Args:
        same_BW: True where the local sample and the world's sample show the same image; at least
            one a row.
        smoothing: Share of the uniform part, 0.1 in the reference.
    """
    same = same_BW.float()
    return (1 - smoothing) * same / same.sum(1, keepdim=True) + smoothing / same.shape[1]


def itc_loss(image_logits_BW: Tensor, text_logits_BW: Tensor, targets_BW: Tensor) -> Tensor:
    """Image–text contrastive loss: soft cross-entropy both ways, averaged.

    Args:
        image_logits_BW: Similarity of local images to all texts over the temperature.
        text_logits_BW: Similarity of local texts to all images over the temperature.
        targets_BW: From `itc_targets`; rows sum to one.
    """
    image_loss = F.cross_entropy(image_logits_BW.float(), targets_BW)
    text_loss = F.cross_entropy(text_logits_BW.float(), targets_BW)
    return (image_loss + text_loss) / 2


def hard_negatives(logits_BW: Tensor, same_BW: Tensor, uniform_B: Tensor | None = None) -> Tensor:
    """Draws for each row one negative from softmax(logits), pairs with equal ids excluded (section
    3.2, ITM).

    A similarity that is not a number counts
    as 0 here, so that a broken batch reaches the training loop's check of the loss instead of
    crashing in the sampler. A row in which *all* ids are equal has no true negative; it gets a
    uniform draw rather than a crash.

    Args:
        logits_BW: Similarity over the temperature, no gradient needed.
        same_BW: True where drawing is forbidden.
        uniform_B: Numbers in [0, 1), float64, whose quantiles are drawn; None takes
            `torch.multinomial`.

    Returns:
        World index of each row's negative, int64 (B).

    Raises:
        ValueError: The world's batch has a single pair: there is nothing to draw.
    """
    if same_BW.shape[1] < 2:
        raise ValueError(
            "batch size is 1 over all ranks: image-text matching needs a negative pair. "
            "Use a global batch of at least 2."
        )
    logits = logits_BW.detach().float().nan_to_num(nan=0.0)
    weights = logits.masked_fill(same_BW, -torch.inf).softmax(1)
    weights = torch.where(same_BW.all(1, keepdim=True), torch.ones_like(weights), weights)
    if uniform_B is None:
        return torch.multinomial(weights, 1)[:, 0]
    sums_BW = weights.double().cumsum(1)
    # Below the sum, whatever rounding does: the first entry beyond is then one with a weight.
    at_B1 = uniform_B[:, None] * sums_BW[:, -1:]
    at_B1 = at_B1.minimum(sums_BW[:, -1:].nextafter(torch.zeros_like(at_B1)))
    return torch.searchsorted(sums_BW, at_B1, right=True)[:, 0]


def itm_loss(logits_RC: Tensor, positives: int) -> Tensor:
    """Image–text matching: two-class cross-entropy; the first `positives` rows match, the others
    do not.

    Args:
        logits_RC: (R, 2), averaged over the queries; class 1 is "match".
        positives: Number of leading rows that are true pairs.
    """
    labels_R = (torch.arange(logits_RC.shape[0], device=logits_RC.device) < positives).long()
    return F.cross_entropy(logits_RC.float(), labels_R)


def token_loss(logits_NV: Tensor, targets_N: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum over tokens of the label-smoothed cross-entropy (ITG and language models); padding was
    left out before.
    """
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum", label_smoothing=smoothing)
