"""Re-ranking of retrieval's candidates with a stage-1 checkpoint, beside scoring pair by pair.

Ours is the whole task (``evaluation.tasks.retrieval``): images and texts are embedded, ITC finds k
candidates of each image and of each text, and ITM scores each candidate pair once. The two other
contenders score a sample of the same pairs with a call of ``Embedder`` for each: "pair by pair"
gives it the image file; "pair by pair, tokens kept" gives it tokens of the frozen encoder that were
made before. Their time is scaled up to all pairs. The ceiling is the FLOPs of the Q-Former's pass
over a pair, at the rate of a large matrix product.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.benchmarks.records import CaptionedImage
from evaluation.chunks.memory import answer_in_memory
from evaluation.tasks.retrieval import Rankings, RetrievalTask, embed_and_match
from jobs.benchmarks import measure as bench
from jobs.benchmarks.evaluate import models
from jobs.predict import Embedder, load
from jobs.prediction.adapters import embedders

OURS, PAIRS, KEPT = "ours", "pair by pair", "pair by pair, tokens kept"


@dataclass(frozen=True)
class Case:
    """Images with captions, and the contenders that score pairs of them.

    Attributes:
        pairs: number of candidate pairs.
        sample: number of pairs that are scored by the contenders other than ours.
        work: for each contender a function that scores its pairs.
        flops: FLOPs of the Q-Former's pass over a pair.
        difference: function that returns the largest difference of a score.
    """

    pairs: int
    sample: int
    work: dict[str, Callable[[], Any]]
    flops: float
    difference: Callable[[], float]


def reranking_case(args: Any, folder: Path) -> Case:
    """The case of the size that is named.

    Args:
        args: options of the benchmark.
        folder: empty folder for the models and images.
    """
    model = load(models.save_embedder(args.size, folder), args.device, "fp32", args.batch)
    assert isinstance(model, Embedder)
    count = args.retrieval_images
    images = models.save_images(count, folder / "images")
    texts = models.captions(count * args.captions)
    items = [
        CaptionedImage(number, image, tuple(texts[number::count]))
        for number, image in enumerate(images)
    ]

    def ours() -> Rankings:
        task, embed = RetrievalTask(items, k=args.k), embedders(model, "reference")
        done = answer_in_memory(
            task, lambda look, part: embed_and_match(look, part, embed, args.batch)
        )
        return task.rank(done)[1]

    rankings = ours()
    scores_IT = torch.maximum(rankings.text_scores_IT, rankings.image_scores_IT)
    rows, columns = scores_IT.isfinite().nonzero(as_tuple=True)
    every = max(1, len(rows) // args.sample)
    pairs = list(zip(rows[::every].tolist(), columns[::every].tolist(), strict=True))
    tokens = {row: model.embed_images([images[row]])[1] for row, _ in pairs}
    first = torch.zeros(1, dtype=torch.long)

    def pair_by_pair() -> list[float]:
        return [
            float(model.match([images[row]], [rankings.texts[column]])[0]) for row, column in pairs
        ]

    def tokens_kept() -> list[Tensor]:
        return [
            model.match_tokens(tokens[row], first, [rankings.texts[column]])[0]
            for row, column in pairs
        ]

    def difference() -> float:
        similarity_IT = _similarities(model, images, rankings.texts)
        matched = torch.tensor(
            [
                logits[1] + similarity_IT[row, column]
                for logits, (row, column) in zip(tokens_kept(), pairs, strict=True)
            ]
        )
        mine = torch.stack([scores_IT[pair] for pair in pairs])
        return float(((matched - mine).abs() / matched.abs().clamp(min=1)).max())

    row, column = pairs[0]
    image = model._module.project_image(tokens[row].to(model.device))
    read = model._read([rankings.texts[column]])
    with torch.no_grad():
        flops = bench.flops(lambda: model._module.match_logits(image, *read))
    work = {OURS: ours, PAIRS: pair_by_pair, KEPT: tokens_kept}
    return Case(len(rows), len(pairs), work, flops, difference)


def _similarities(model: Embedder, images: list[Path], texts: tuple[str, ...]) -> Tensor:
    """ITC similarities of all images and texts, of the best query."""
    feats_IQE, texts_TE = model.image_embeds(images), model.text_embeds(texts)
    return (feats_IQE @ texts_TE.T).amax(1)
