"""The three self-attention masks of the Q-Former (paper, figure 2), one function each.

All return bool of shape (B, 1, S, S), which `scaled_dot_product_attention` takes for every head:
rows attend to columns, and True allows it. The drawings show one pair with two queries (q) and
three text tokens, of which the last is padding (p).

Shapes: see `modeling`.
"""

import torch
from torch import Tensor


def contrastive_mask(text_mask_BL: Tensor, queries: int) -> Tensor:
    """ITC, uni-modal: queries and text do not see each other.

    |    | q q | t t p |
    | q  | 1 1 | . . . |
    | q  | 1 1 | . . . |
    | t  | . . | 1 1 . |
    | t  | . . | 1 1 . |
    | p  | . . | 1 1 . |
    """
    is_text_S = _is_text(text_mask_BL, queries)
    same_side_SS = is_text_S[:, None] == is_text_S[None, :]
    return _with_padding(same_side_SS, text_mask_BL, queries)


def matching_mask(text_mask_BL: Tensor, queries: int) -> Tensor:
    """ITM, bi-directional: queries and text see everything except padding.

    |    | q q | t t p |
    | q  | 1 1 | 1 1 . |
    | q  | 1 1 | 1 1 . |
    | t  | 1 1 | 1 1 . |
    | t  | 1 1 | 1 1 . |
    | p  | 1 1 | 1 1 . |
    """
    size = queries + text_mask_BL.shape[1]
    everything_SS = torch.ones(size, size, dtype=torch.bool, device=text_mask_BL.device)
    return _with_padding(everything_SS, text_mask_BL, queries)


def generation_mask(text_mask_BL: Tensor, queries: int) -> Tensor:
    """ITG, multi-modal causal: queries see queries, text sees queries and the text before it.

    |    | q q | t t p |
    | q  | 1 1 | . . . |
    | q  | 1 1 | . . . |
    | t  | 1 1 | 1 . . |
    | t  | 1 1 | 1 1 . |
    | p  | 1 1 | 1 1 . |
    """
    is_text_S = _is_text(text_mask_BL, queries)
    size = is_text_S.shape[0]
    causal_SS = torch.ones(size, size, dtype=torch.bool, device=text_mask_BL.device).tril()
    queries_SS = (~is_text_S)[None, :].expand(size, size)
    return _with_padding(queries_SS | causal_SS & is_text_S[:, None], text_mask_BL, queries)


def _is_text(text_mask_BL: Tensor, queries: int) -> Tensor:
    size = queries + text_mask_BL.shape[1]
    return torch.arange(size, device=text_mask_BL.device) >= queries


def _with_padding(allowed_SS: Tensor, text_mask_BL: Tensor, queries: int) -> Tensor:
    real_BS = torch.nn.functional.pad(text_mask_BL.bool(), (queries, 0), value=True)
    return (allowed_SS[None] & real_BS[:, None, :])[:, None]
