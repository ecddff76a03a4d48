"""CapFilt's scorer: CLIP's similarity of an image and its texts (paper, section 3.4).

Shapes: see `modeling`; S texts, N texts of an image. Side S of an image is in pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import normalize

from modeling.linear import faster_products

_TEXTS = 128  # texts that are embedded at once
# Without cuDNN's attention, which is planned anew for every number and length of texts: 55 ms on an
# H200 for each that is met for the first time, as long as all texts of 64 images take.
_ANY_LENGTH = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class ClipScorer:
    """Cosine similarity of images and texts by a Hugging Face ``CLIPModel``.

    Args:
        model: Hugging Face's module; it is put into eval mode, and its matrix products are made by
            the faster library.
        tokenizer: the model's BPE tokenizer; texts longer than the model's context are cut.
        mean, std: mean and standard deviation of each channel, for pixels in [0, 1].
    """

    def __init__(
        self, model: Any, tokenizer: Any, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.model, self.tokenizer = faster_products(model.eval()), tokenizer
        self.context = model.config.text_config.max_position_embeddings
        self.device = model.visual_projection.weight.device
        self.mean = torch.tensor(mean, device=self.device).view(3, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(3, 1, 1)

    def __call__(self, images_B3SS: Tensor, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Scores of each image's own texts, in their order; equal texts are embedded once."""
        unique = sorted({text for row in texts for text in row})
        if not unique:
            return [[] for _ in texts]
        index_of = {text: index for index, text in enumerate(unique)}
        images_BE, texts_SE = self.image_embeds(images_B3SS), self.text_embeds(unique)
        scores = []
        for image_E, row in zip(images_BE, texts, strict=True):
            mine_NE = texts_SE[[index_of[text] for text in row]]
            scores.append((mine_NE * image_E).sum(-1).tolist())
        return scores

    @torch.inference_mode()
    def image_embeds(self, images_B3SS: Tensor) -> Tensor:
        """L2-normalised float32 embeddings (B, E) of uint8 images at the scorer's size."""
        pixels = (images_B3SS.to(self.device).float() / 255.0 - self.mean) / self.std
        pixels = pixels.to(self.model.visual_projection.weight.dtype)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return normalize(self.model.visual_projection(pooled).float(), dim=-1)

    @torch.inference_mode()
    def text_embeds(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised float32 embeddings (S, E).

        Texts are sorted by length, and each group is only as wide as its longest text: under the
        causal mask nothing behind a text's end token reaches it, so the result is exact.
        """
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.context).input_ids
        order = sorted(range(len(ids)), key=lambda index: (len(ids[index]), index))
        embeds = []
        for first in range(0, len(order), _TEXTS):
            group = [ids[index] for index in order[first : first + _TEXTS]]
            longest = max(map(len, group))
            end = [row + [row[-1]] * (longest - len(row)) for row in group]
            with sdpa_kernel(_ANY_LENGTH):
                pooled = self.model.text_model(torch.tensor(end, device=self.device)).pooler_output
            embeds.append(normalize(self.model.text_projection(pooled).float(), dim=-1))
        back = torch.tensor(order, device=self.device).argsort()
        return torch.cat(embeds)[back]
