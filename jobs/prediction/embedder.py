"""The predictor of a stage-1 checkpoint: embeddings of images and texts, and match scores.

Shape suffixes: B images or texts, R pairs, C classes, Q queries, P image tokens, D width, E shared
embedding.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.models.bert import tokenise
from jobs.prediction.pictures import Picture, check_pairs, distinct
from jobs.prediction.predictor import Predictor
from modeling.blip2 import TEMPERATURE_BOUNDS, Stage1
from modeling.qformer import select
from pipeline.text_processors import caption_text


class ImageFeatures(NamedTuple):
    """Images as a stage-1 checkpoint knows them.

    Attributes:
        queries: L2-normalised features ``B Q E`` of every query.
        tokens: tokens ``B P D`` of the image encoder.
    """

    queries: Tensor
    tokens: Tensor

    @property
    def pooled(self) -> Tensor:
        """One feature ``B E`` an image (``pool``)."""
        return pool(self.queries)


def pool(queries_BQE: Tensor) -> Tensor:
    """One feature ``B E`` an image: the mean of its queries' features, L2-normalised.

    Two images are compared by it. The paper compares an image with a text by the largest product
    over the queries, which is not a product of two vectors; so texts are better compared with all.
    """
    return F.normalize(queries_BQE.mean(1), dim=-1)


class Embedder(Predictor):
    """A stage-1 checkpoint, whose Q-Former embeds images and texts and matches them."""

    lacks = (
        "this is a stage-1 checkpoint, which has no language model; "
        "give one of stage 2 for captions and answers"
    )

    # --------------------------------------------------------------- contrastive features

    @torch.inference_mode()
    def image_embeds(self, images: Sequence[Picture]) -> Tensor:
        """L2-normalised features ``B Q E`` of every query, fp32 on the CPU."""
        self._check(images)
        return self._batched(
            images, lambda batch: self._module.image_embeds(self._tokens(batch)).cpu()
        )

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Picture]) -> "ImageFeatures":
        """Features ``B Q E``, and the encoder's tokens ``B P D`` that ``match_tokens`` takes.

        The tokens of all images are held; ``image_embeds`` gives the features alone.
        """
        self._check(images)
        tokens_BPD = self._batched(images, lambda batch: self._tokens(batch).cpu())
        feats = [
            self._module.image_embeds(part.to(self.device)).cpu()
            for part in tokens_BPD.split(self.batch_size)
        ]
        return ImageFeatures(torch.cat(feats), tokens_BPD)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """The same as ``text_embeds``."""
        return self.text_embeds(texts)

    @torch.inference_mode()
    def text_embeds(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised features ``B E``, fp32 on the CPU; compare with ``image_embeds``."""
        return self._batched(
            texts, lambda batch: self._module.text_embeds(*self._read(batch)).cpu()
        )

    @torch.inference_mode()
    def similarity(self, images: Sequence[Picture], texts: Sequence[str]) -> Tensor:
        """ITC score ``R`` of each pair: the largest cosine of the text and a query of the image.

        Raises:
            ValueError: not one text an image, or an image cannot be read.
        """
        check_pairs(images, texts, "texts")
        different, row_of = distinct(images)
        image_RQE = self.image_embeds(different)[torch.tensor(row_of)]
        return torch.einsum("rqe,re->rq", image_RQE, self.text_embeds(texts)).amax(1)

    @torch.inference_mode()
    def joint_embeds(self, images: Sequence[Picture], texts: Sequence[str]) -> Tensor:
        """Features ``R Q D`` of pairs: the Q-Former's outputs at its queries, which saw image and
        text (section 3.2, the bi-directional mask); fp32 on the CPU. ITM's head reads them.

        Raises:
            ValueError: not one text an image, or an image cannot be read.
        """
        check_pairs(images, texts, "texts")
        self._check(images)
        found = []
        for part_R in torch.arange(len(texts)).split(self.batch_size):
            rows = part_R.tolist()
            image = self._module.project_image(self._tokens([images[row] for row in rows]))
            read = self._read([texts[row] for row in rows])
            found.append(self._module.qformer.encode_pair(image, *read).float().cpu())
        return torch.cat(found)

    @property
    def temperature(self) -> float:
        """Divisor of the similarities in the contrastive loss."""
        low, high = TEMPERATURE_BOUNDS
        return min(max(self._module.temperature.item(), low), high)

    # -------------------------------------------------------------------------- matching

    def match(self, images: Sequence[Picture], texts: Sequence[str]) -> Tensor:
        """ITM score ``R`` of each pair: logit of "match" minus that of "no match".

        Raises:
            ValueError: not one text an image, or an image cannot be read.
        """
        check_pairs(images, texts, "texts")
        different, row_of = distinct(images)
        self._check(different)
        tokens_BPD = self._batched(different, lambda batch: self._tokens(batch).cpu())
        rows_R = torch.tensor(row_of)
        scores = []
        for part_R in torch.arange(len(texts)).split(self.batch_size):
            needed, row_R = rows_R[part_R].unique(return_inverse=True)
            pair_texts = [texts[i] for i in part_R.tolist()]
            scores.append(self.match_tokens(tokens_BPD[needed], row_R, pair_texts))
        logits_RC = torch.cat(scores)
        return logits_RC[:, 1] - logits_RC[:, 0]

    @torch.inference_mode()
    def match_tokens(self, tokens_BPD: Tensor, rows_R: Tensor, texts: Sequence[str]) -> Tensor:
        """ITM logits ``R 2`` of pairs, in one batch: "no match" and "match".

        The keys of an image are projected once for all its pairs.

        Args:
            tokens_BPD: tokens of different images, from ``embed_images``.
            rows_R: for each pair the row of its image.
            texts: ``R`` texts.
        """
        image = self._module.project_image(tokens_BPD.to(self.device))
        pairs = select(image, rows_R.to(self.device))
        return self._module.match_logits(pairs, *self._read(list(texts))).cpu()

    @property
    def _module(self) -> Stage1:
        return cast(Stage1, self.trained.module)

    def _read(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask ``B L`` of texts under the text rule of the checkpoint's recipe."""
        recipe = self.trained.recipe
        texts = [caption_text(text, recipe.text) for text in texts]
        rows = tokenise(self.trained.tokenizer, texts, recipe.max_text)
        return rows["ids"].to(self.device), rows["mask"].to(self.device)
