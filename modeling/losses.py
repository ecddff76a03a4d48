"""The three stage-1 losses (paper, section 3.2) as pure functions of tensors.

Features of other ranks are arguments. All losses are computed in fp32, whatever the number format
of the inputs.

Shapes: see `modeling`; N target tokens, C classes (no match, match).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling.linear import input_product, product, weight_product

IGNORED = -100  # the target of a position that does not count
CHUNK = 1 << 24  # logits that may stand in memory at once


def image_to_text_similarity(image_feats_BQE: Tensor, text_feats_WE: Tensor) -> Tensor:
    """Similarity (B, W) of local images to all texts: the largest dot product of the queries."""
    return torch.einsum("bqe,we->bwq", image_feats_BQE.float(), text_feats_WE.float()).amax(-1)


def text_to_image_similarity(text_feats_BE: Tensor, image_feats_WQE: Tensor) -> Tensor:
    """Similarity (B, W) of local texts to all images: the largest dot product of the queries."""
    return torch.einsum("be,wqe->bwq", text_feats_BE.float(), image_feats_WQE.float()).amax(-1)


def itc_targets(same_BW: Tensor, smoothing: float) -> Tensor:
    """Soft targets (B, W): uniform over the samples of the same image, smoothed.

    Args:
        same_BW: True where the local sample and the world's sample show the same image; at least
            one in a row.
        smoothing: Share of the distribution that is uniform over all samples; 0.1 in the reference.
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
    """Draws one hard negative for each row from softmax(logits) (section 3.2, ITM).

    Samples of the same image are excluded. A similarity that is not a number counts as 0, so that
    a broken batch reaches the training loop's check of the loss instead of crashing in the sampler.
    A row in which all samples show the same image has no true negative; it gets a uniform draw.

    Args:
        logits_BW: Similarity over the temperature; needs no gradient.
        same_BW: True where two samples show the same image.
        uniform_B: Numbers in [0, 1), float64, whose quantiles are taken; None draws them here.

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
    return _draw(weights) if uniform_B is None else draw_quantiles(weights, uniform_B)


def draw_quantiles(weights_BW: Tensor, uniform_B: Tensor) -> Tensor:
    """Indices (B) at which the quantiles of the rows' weights lie."""
    sums_BW = weights_BW.double().cumsum(1)
    # Below the sum, whatever rounding does: the first entry beyond is then one with a weight.
    at_B1 = uniform_B[:, None] * sums_BW[:, -1:]
    at_B1 = at_B1.minimum(sums_BW[:, -1:].nextafter(torch.zeros_like(at_B1)))
    return torch.searchsorted(sums_BW, at_B1, right=True)[:, 0]


def _draw(weights_BW: Tensor) -> Tensor:
    """Indices (B) drawn in proportion to the rows' weights."""
    if not weights_BW.is_cuda:
        return torch.multinomial(weights_BW, 1)[:, 0]
    return draw_by_race(weights_BW)


def draw_by_race(weights_BW: Tensor) -> Tensor:
    """Indices (B) that `torch.multinomial` draws, without its checks, which wait for the device.

    Of W exponential clocks, each with its weight as rate, the first one to ring is drawn.
    """
    clocks_BW = torch.empty_like(weights_BW).exponential_()
    return (weights_BW / clocks_BW).argmax(1)


def itm_loss(logits_RC: Tensor, positives: int) -> Tensor:
    """Image–text matching loss: cross-entropy of two classes.

    Args:
        logits_RC: (R, 2), averaged over the queries; class 1 is "match".
        positives: Number of leading pairs that match; the others do not.
    """
    labels_R = (torch.arange(logits_RC.shape[0], device=logits_RC.device) < positives).long()
    return F.cross_entropy(logits_RC.float(), labels_R)


def token_loss(logits_NV: Tensor, targets_N: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum over tokens of the label-smoothed cross-entropy (ITG and language models)."""
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum", label_smoothing=smoothing)


ALIGNED, ALIGNED_ON = 8, ("cuda",)  # words, and the devices that want them so


def head_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    *,
    smoothing: float = 0.0,
    chunk: int = CHUNK,
) -> Tensor:
    """`token_loss` of a linear head's logits, computed for a few rows at a time.

    The logits of all rows are never in memory together: gradients are computed in the forward pass
    and overwrite the logits. A frozen head gets no gradient; the gradient of one that trains is
    summed in fp32. There are as many matrix products as in the plain way: three, or two with a
    frozen head.

    Args:
        hidden_ND: Input of the head.
        weight_VD: Matrix of the head; may be a word embedding.
        bias_V: Bias of the head, or None.
        targets_N: Token ids, or `IGNORED` for rows that do not count.
        smoothing: Label smoothing.
        chunk: Largest number of logits in memory.
    """
    how = (smoothing, max(1, chunk // len(weight_VD)), torch.is_grad_enabled())
    total: Tensor = _HeadLoss.apply(hidden_ND, weight_VD, bias_V, targets_N, how)
    return total


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  autograd passes arguments by position
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        how: tuple[float, int, bool],
    ) -> Tensor:
        smoothing, rows, learns = how
        wanted = [learns and wants for wants in ctx.needs_input_grad[:3]]
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        sums: list[Tensor | None] = [None, None]  # of the weight and the bias
        parts = []
        words, aligned = len(weight_VD), _aligned(weight_VD)
        for hidden, targets in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True):
            logits = product(hidden, aligned)[:, :words].float()
            if bias_V is not None:
                logits += bias_V
            total += _loss_then_gradient(logits, targets, smoothing)
            grad = logits.to(hidden.dtype)
            if len(aligned) > words:
                grad = F.pad(grad, (0, len(aligned) - words))
            if wanted[0]:
                parts.append(input_product(grad, aligned))
            if wanted[1]:
                sums[0] = _add(sums[0], weight_product(grad, hidden)[:words])
            if wanted[2]:
                sums[1] = _add(sums[1], logits.sum(0))
        ctx.gradients = (torch.cat(parts) if parts else None, *sums)
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden_ND, weight_VD, bias_V)]
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("head_loss: a second backward pass; its gradients are gone")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [
            None if found is None else found.mul_(grad).to(dtype)
            for found, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None)


def _aligned(weight_VD: Tensor) -> Tensor:
    """The matrix with rows of zeros up to a multiple of eight, where a GPU multiplies: with BERT's
    30,523 words no row of logits begins on 16 bytes, and the products take kernels for unaligned
    memory (on an H200 in bf16, 30,005 words took 2.5 times as long as 30,524).
    """
    lacking = -len(weight_VD) % ALIGNED if weight_VD.device.type in ALIGNED_ON else 0
    return F.pad(weight_VD, (0, 0, 0, lacking)) if lacking else weight_VD


def _loss_then_gradient(logits_NV: Tensor, targets_N: Tensor, smoothing: float) -> Tensor:
    """Summed loss of the rows; overwrites their logits with the gradient."""
    counts_N1 = (targets_N != IGNORED).unsqueeze(1)
    words_N1 = targets_N.unsqueeze(1).clamp(min=0)
    even = smoothing / logits_NV.shape[1]
    logits_NV -= logits_NV.amax(1, keepdim=True)
    said_N1 = (1 - smoothing) * logits_NV.gather(1, words_N1)
    if smoothing:
        said_N1 += even * logits_NV.sum(1, keepdim=True)
    sums_N1 = logits_NV.exp_().sum(1, keepdim=True)
    loss = ((sums_N1.log() - said_N1) * counts_N1).sum()
    logits_NV *= counts_N1 / sums_N1
    if smoothing:
        logits_NV -= even * counts_N1
    logits_NV.scatter_add_(1, words_N1, (smoothing - 1) * counts_N1.float())
    return loss


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    return part.float() if total is None else total.add_(part)
