"""Image-text retrieval: ITC finds k candidates, ITM re-ranks them (paper, section 4.4).

Each image and each text is encoded once. A pair that is a candidate in both directions is matched
once. Between the two passes only features and encoder tokens stay in memory, in the number format
in which the model gave them.

Shape suffixes: I images, T texts, B batch, R pairs, C classes, Q queries, E shared embedding,
P image tokens, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.benchmarks.records import CaptionedImage
from evaluation.notes import size_notes
from evaluation.outputs import Outputs
from evaluation.scores.recall import recalls
from evaluation.work import chunks

Rerank = Literal["reference", "odds"]
"""Score by which candidates are ranked again: ITM's logit of "match" plus the ITC similarity, as in
the reference implementation; or ITM's log-odds plus the similarity over the temperature."""


@dataclass(frozen=True)
class Embedders:
    """A model that embeds and matches images and texts, as three callables.

    Attributes:
        similarity_weight: factor of the ITC similarity that the score of ``match`` is added to; 1
            in the reference implementation.
        rerank: name of the score that ``match`` and the weight make up together.
    """

    images: Callable[[Sequence[Path]], tuple[Tensor, Tensor]]
    """Files -> unit features ``B Q E`` and the frozen encoder's tokens ``B P D``."""
    texts: Callable[[Sequence[str]], Tensor]
    """Texts -> unit features ``B E``."""
    match: Callable[[Tensor, Tensor, Sequence[str]], Tensor]
    """Tokens ``B P D`` of different images, for each pair the row of its image ``R``, and ``R``
    texts -> ITM scores ``R``. The model can project the keys of an image once for all its pairs."""
    similarity_weight: float = 1.0
    rerank: Rerank = "reference"


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


def evaluate_retrieval(
    items: Sequence[CaptionedImage],
    model: Embedders,
    out: Outputs,
    *,
    task: str = "retrieval",
    split: str = "test",
    k: int = 128,
    captions_per_image: int | None = None,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Retrieve among the images; writes examples to ``TASK_SPLIT_examples.json``.

    Returns:
        The scores of ``retrieve``, and notes.
    """
    scores, rankings = retrieve(
        items, model, k=k, captions_per_image=captions_per_image, batch_size=batch_size
    )
    out.write(f"{task}_{split}_examples.json", examples(items, rankings))
    return scores | {"rerank": model.rerank, "notes": size_notes(len(items))}


def retrieve(
    items: Sequence[CaptionedImage],
    embed: Embedders,
    *,
    k: int = 128,
    captions_per_image: int | None = None,
    batch_size: int = 64,
    match_batch_size: int = 128,
) -> tuple[dict[str, Any], Rankings]:
    """Recalls of both directions before and after re-ranking, and chance.

    Args:
        items: images with their captions, all of them candidates of each other.
        k: candidates per image and per text that ITM ranks again.
        captions_per_image: number of captions used of each image; None: all.
        match_batch_size: pairs in one forward pass of ITM.

    Returns:
        ``{"tr_r1" … "ir_r10", "itc": {the same, ITC alone}, "chance", "images", "texts", "k"}`` and
        the rankings.

    Raises:
        ValueError: there are no items, one without a caption, k is below 1, or the model's numbers
            are NaN.
    """
    if not items or k < 1:
        raise ValueError(f"retrieval needs images and k of at least 1; got {len(items)}, k {k}")
    captions = [item.references[:captions_per_image] for item in items]
    if not all(captions):
        mute = items[captions.index(())].image_id
        raise ValueError(f"image {mute} has no caption; retrieval needs at least one of each image")
    texts = tuple(text for group in captions for text in group)
    owner = tuple(row for row, group in enumerate(captions) for _ in group)
    tokens_IPD, scores_IT = _similarities(items, texts, embed, batch_size)
    itc = recalls(scores_IT, owner)
    for_text_IT, for_image_IT = _candidates(scores_IT, k)

    def match(rows_R: Tensor, texts: Sequence[str]) -> Tensor:
        images_B, row_R = rows_R.unique(return_inverse=True)
        return embed.match(tokens_IPD[images_B], row_R, texts)

    union_IT = for_text_IT | for_image_IT
    scores_IT *= embed.similarity_weight
    _rerank(scores_IT, union_IT, texts, match=match, batch_size=match_batch_size)
    absent = float("-inf")
    rankings = Rankings(
        texts,
        owner,
        text_scores_IT=scores_IT.masked_fill(~for_text_IT, absent),
        image_scores_IT=scores_IT.masked_fill(~for_image_IT, absent),
    )
    scores: dict[str, Any] = recalls(
        rankings.text_scores_IT, owner, image_scores_IT=rankings.image_scores_IT
    )
    counts = {"images": len(items), "texts": len(texts), "k": k}
    return {**scores, "itc": itc, "chance": 1 / len(items), **counts}, rankings


def _similarities(
    items: Sequence[CaptionedImage], texts: Sequence[str], embed: Embedders, batch_size: int
) -> tuple[Tensor, Tensor]:
    """The encoder tokens of all images, and the ITC similarities ``I T`` in fp32."""
    progress = tqdm(total=len(items) + len(texts), desc="retrieval: embed", unit="item")
    text_feats = []
    for text_batch in chunks(texts, batch_size):
        text_feats.append(_numbers(embed.texts(text_batch), "text features"))
        progress.update(len(text_batch))
    text_feats_TE = torch.cat(text_feats)
    tokens, scores = [], []
    for image_batch in chunks(items, batch_size):
        feats_BQE, tokens_BPD = embed.images([item.path for item in image_batch])
        tokens.append(tokens_BPD.cpu())
        scores.append(_best_query(_numbers(feats_BQE, "image features"), text_feats_TE))
        progress.update(len(image_batch))
    progress.close()
    return torch.cat(tokens), torch.cat(scores)


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


def _rerank(
    scores_IT: Tensor,
    candidates_IT: Tensor,
    texts: Sequence[str],
    *,
    match: Callable[[Tensor, Sequence[str]], Tensor],
    batch_size: int,
) -> None:
    """Add the ITM score of every candidate pair to its weighted ITC similarity, in place."""
    rows, columns = candidates_IT.nonzero(as_tuple=True)  # in the order of images
    with tqdm(total=len(rows), desc="retrieval: match", unit="pair") as progress:
        pairs = zip(rows.split(batch_size), columns.split(batch_size), strict=True)
        for row_R, column_R in pairs:
            logits_R = match(row_R, [texts[column] for column in column_R.tolist()])
            scores_IT[row_R, column_R] += _numbers(logits_R, "match logits")
            progress.update(len(row_R))


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
