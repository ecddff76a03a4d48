"""Image-text retrieval: ITC finds k candidates, ITM re-ranks them (paper, section 4.4).

Each text is encoded once, each image once for its features and once for all its pairs. A pair that
is a candidate in both directions is matched once. Between the passes only features are kept.

Shape suffixes: I images, T texts, B batch, R pairs, C classes, Q queries, E shared embedding,
P image tokens, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from evaluation.benchmarks.records import CaptionedImage, ImageId
from evaluation.intervals.captions import observe_retrieval
from evaluation.notes import size_notes
from evaluation.outputs import Outputs
from evaluation.scores.recall import hits, recalls
from evaluation.tasks.base import Arrays, Pass
from evaluation.tasks.batches import batches
from evaluation.tasks.captions import Picture
from evaluation.tasks.observing import with_items

_IMAGES = 32  # of a chunk: each has hundreds of pairs, whose tokens are held together

Rerank = Literal["reference", "odds"]
"""Score by which candidates are ranked again: ITM's logit of "match" plus the ITC similarity, as in
the reference implementation; or ITM's log-odds plus the similarity over the temperature."""


@dataclass(frozen=True)
class Embedders:
    """A model that embeds and matches images and texts, as three callables.

    Attributes:
        similarity_weight: factor of the ITC similarity that the score of ``match`` is added to; 1
            in the reference implementation.
    """

    images: Callable[[Sequence[Path]], tuple[Tensor, Tensor]]
    """Files -> unit features ``B Q E`` and the frozen encoder's tokens ``B P D``."""
    texts: Callable[[Sequence[str]], Tensor]
    """Texts -> unit features ``B E``."""
    match: Callable[[Tensor, Tensor, Sequence[str]], Tensor]
    """Tokens ``B P D`` of different images, for each pair the row of its image ``R``, and ``R``
    texts -> ITM scores ``R``. The model can project the keys of an image once for all its pairs."""
    similarity_weight: float = 1.0


@dataclass(frozen=True)
class Rankings:
    """Scores of all pairs after re-ranking; ``-inf``: the pair is not a candidate.

    Attributes:
        image_of_text: for each text the row of its image.
        text_scores_IT: scores of the candidates of each image.
        image_scores_IT: scores of the candidates of each text.
    """

    texts: tuple[str, ...]
    image_of_text: tuple[int, ...]
    text_scores_IT: Tensor
    image_scores_IT: Tensor

    def top_texts(self, image: int, count: int) -> list[int]:
        """The best texts for one image, best first."""
        return self.text_scores_IT[image].topk(min(count, len(self.texts))).indices.tolist()

    def top_images(self, text: int, count: int) -> list[int]:
        """The best images for one text, best first."""
        column = self.image_scores_IT[:, text]
        return column.topk(min(count, len(column))).indices.tolist()


def itm_scores(logits_RC: Tensor, rerank: Rerank) -> Tensor:
    """ITM score ``R`` of each pair.

    Args:
        logits_RC: ITM logits of "no match" and "match".
        rerank: ``reference``: the logit of "match" alone; ``odds``: its lead over "no match".
    """
    return logits_RC[:, 1] - logits_RC[:, 0] if rerank == "odds" else logits_RC[:, 1]


@dataclass(frozen=True)
class Pairing:
    """One image with the texts that it is matched with.

    Attributes:
        texts: texts of the pairs.
        columns: number of each text among all texts.
    """

    image_id: ImageId
    path: Path
    texts: tuple[str, ...]
    columns: tuple[int, ...]

    def told(self) -> str:
        return f"{self.image_id}\t{self.path.name}\t{self.columns}"


class RetrievalTask:
    """Retrieval among images: texts and images are embedded, then candidate pairs are matched.

    Args:
        items: images with their captions, all of them candidates of each other.
        name: name of the task, as its files begin.
        rerank: score of a candidate.
        k: candidates per image and per text that ITM ranks again.
        captions_per_image: number of captions used of each image; None: all.

    Raises:
        ValueError: there are no items, one without a caption, or k is below 1.
    """

    def __init__(
        self,
        items: Sequence[CaptionedImage],
        *,
        name: str = "retrieval",
        split: str = "test",
        rerank: Rerank = "reference",
        k: int = 128,
        captions_per_image: int | None = None,
    ) -> None:
        if not items or k < 1:
            raise ValueError(f"retrieval needs images and k of at least 1; got {len(items)}, k {k}")
        captions = [item.references[:captions_per_image] for item in items]
        if not all(captions):
            mute = items[captions.index(())].image_id
            raise ValueError(
                f"image {mute} has no caption; retrieval needs at least one of each image"
            )
        self.name, self.split, self.rerank, self.k = name, split, rerank, k
        self.items = items
        self.texts = tuple(text for group in captions for text in group)
        self.owner = tuple(row for row, group in enumerate(captions) for _ in group)
        self._found: tuple[Tensor, Tensor, Tensor] | None = None

    def passes(self, done: Mapping[str, list[Any]]) -> list[Pass]:
        """Embedding of texts and images; once they are there, matching of the candidates."""
        pictures = [Picture(item.image_id, item.path) for item in self.items]
        passes = [Pass("texts", self.texts), Pass("images", pictures, chunk=_IMAGES)]
        if not {"texts", "images"} <= done.keys():
            return passes
        _, for_text_IT, for_image_IT = self._candidates(done)
        wanted_IT = for_text_IT | for_image_IT
        pairings = []
        for item, row_T in zip(self.items, wanted_IT, strict=True):
            columns = row_T.nonzero()[:, 0].tolist()
            texts = tuple(self.texts[column] for column in columns)
            pairings.append(Pairing(item.image_id, item.path, texts, tuple(columns)))
        return [*passes, Pass("match", pairings, chunk=_IMAGES)]

    def score(self, done: Mapping[str, list[Any]], out: Outputs) -> dict[str, Any]:
        """Recalls of both directions before and after re-ranking, and chance.

        Writes examples to ``TASK_SPLIT_examples.json``.

        Returns:
            ``{"tr_r1" … "ir_r10", "itc": {the same, ITC alone}, "chance", "images", "texts", "k",
            "rerank", "notes"}``.

        Raises:
            ValueError: the model's numbers are NaN.
        """
        scores, rankings = self.rank(done)
        out.write(f"{self.name}_{self.split}_examples.json", examples(self.items, rankings))
        scores |= {"rerank": self.rerank, "notes": size_notes(len(self.items))}
        after, by = rankings.text_scores_IT, rankings.image_scores_IT
        found = {
            "": hits(after, self.owner, image_scores_IT=by),
            "itc.": hits(self._candidates(done)[0], self.owner),
        }
        listed = {
            before: {name: of_query.tolist() for name, of_query in of_names.items()}
            for before, of_names in found.items()
        }
        observed = observe_retrieval(self.items, self.owner, listed)
        return with_items(scores, observed, out, self.name, self.split)

    def rank(self, done: Mapping[str, list[Any]]) -> tuple[dict[str, Any], "Rankings"]:
        """The scores without notes, and the rankings behind them."""
        scores_IT, for_text_IT, for_image_IT = self._candidates(done)
        itc = recalls(scores_IT, self.owner)
        wanted_IT = for_text_IT | for_image_IT
        matched = [torch.from_numpy(part["scores"]) for part in done["match"]]
        weight = float(done["texts"][0]["weight"][0])
        scores_IT = scores_IT * weight
        scores_IT[wanted_IT] += _numbers(torch.cat(matched), "match logits")  # in order of images
        absent = float("-inf")
        rankings = Rankings(
            self.texts,
            self.owner,
            text_scores_IT=scores_IT.masked_fill(~for_text_IT, absent),
            image_scores_IT=scores_IT.masked_fill(~for_image_IT, absent),
        )
        scores: dict[str, Any] = recalls(
            rankings.text_scores_IT, self.owner, image_scores_IT=rankings.image_scores_IT
        )
        images = len(self.items)
        counts = {"images": images, "texts": len(self.texts), "k": self.k}
        return {**scores, "itc": itc, "chance": 1 / images, **counts}, rankings

    def _candidates(self, done: Mapping[str, list[Any]]) -> tuple[Tensor, Tensor, Tensor]:
        """ITC similarities ``I T``, and the masks of the best texts and of the best images."""
        if self._found is None:
            texts = [torch.from_numpy(part["features"]) for part in done["texts"]]
            text_feats_TE = _numbers(torch.cat(texts), "text features")
            parts = [
                _best_query(
                    _numbers(torch.from_numpy(part["features"]), "image features"), text_feats_TE
                )
                for part in done["images"]
            ]
            scores_IT = torch.cat(parts)
            self._found = (scores_IT, *_candidates(scores_IT, self.k))
        return self._found


def embed_and_match(
    look: str,
    items: Sequence[Any],
    embed: Embedders,
    batch_size: int = 64,
    match_batch_size: int = 128,
) -> Arrays:
    """The arrays of a chunk: ``features`` of texts or images, or ``scores`` of pairs.

    Args:
        look: name of the pass: texts, images or match.
        match_batch_size: pairs in one forward pass of ITM.
    """
    if look == "texts":
        feats = [embed.texts(batch).float().cpu() for batch in batches(items, batch_size)]
        weight = np.array([embed.similarity_weight])
        return {"features": torch.cat(feats).numpy(), "weight": weight}
    if look == "images":
        parts = [
            embed.images([item.path for item in batch])[0].float().cpu()
            for batch in batches(items, batch_size)
        ]
        return {"features": torch.cat(parts).numpy()}
    tokens_BPD = torch.cat(
        [
            embed.images([item.path for item in batch])[1].cpu()
            for batch in batches(items, batch_size)
        ]
    )
    rows_R = torch.tensor([row for row, item in enumerate(items) for _ in item.texts])
    texts = [text for item in items for text in item.texts]
    scores = []
    for part_R in torch.arange(len(texts)).split(match_batch_size):
        needed, row_R = rows_R[part_R].unique(return_inverse=True)
        pair_texts = [texts[pair] for pair in part_R.tolist()]
        scores.append(embed.match(tokens_BPD[needed], row_R, pair_texts).float().cpu())
    return {"scores": torch.cat(scores).numpy()}


def _numbers(values: Tensor, what: str) -> Tensor:
    """The values in fp32 on the CPU; NaN is refused here and not after the last batch."""
    plain = values.float().cpu()
    if torch.isnan(plain).any():
        raise ValueError(f"the checkpoint's {what} are NaN; it is broken")
    return plain


def _best_query(feats_BQE: Tensor, text_feats_TE: Tensor) -> Tensor:
    """The similarities ``B T`` of the best query of each image."""
    best_BT = feats_BQE[:, 0] @ text_feats_TE.T
    for query in range(1, feats_BQE.shape[1]):  # all at once, B x Q x T would be the largest tensor
        torch.maximum(best_BT, feats_BQE[:, query] @ text_feats_TE.T, out=best_BT)
    return best_BT


def _candidates(scores_IT: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Masks of the k best texts of each image, and of the k best images of each text."""
    images, texts = scores_IT.shape
    nothing = torch.zeros_like(scores_IT, dtype=torch.bool)
    best_texts = scores_IT.topk(min(k, texts), dim=1).indices
    best_images = scores_IT.topk(min(k, images), dim=0).indices
    return nothing.scatter(1, best_texts, True), nothing.scatter(0, best_images, True)


def examples(
    items: Sequence[CaptionedImage], rankings: Rankings, count: int = 8, best: int = 5
) -> dict[str, Any]:
    """The best texts of the first images and the best images of their first texts, for a report."""
    text_queries = [rankings.image_of_text.index(row) for row in range(min(count, len(items)))]
    return {
        "image_to_text": [
            {
                "image_id": items[row].image_id,
                "results": [
                    {
                        "text": rankings.texts[text],
                        "score": float(rankings.text_scores_IT[row, text]),
                        "right": rankings.image_of_text[text] == row,
                    }
                    for text in rankings.top_texts(row, best)
                ],
            }
            for row in range(min(count, len(items)))
        ],
        "text_to_image": [
            {
                "text": rankings.texts[text],
                "results": [
                    {
                        "image_id": items[row].image_id,
                        "score": float(rankings.image_scores_IT[row, text]),
                        "right": rankings.image_of_text[text] == row,
                    }
                    for row in rankings.top_images(text, best)
                ],
            }
            for text in text_queries
        ],
    }
