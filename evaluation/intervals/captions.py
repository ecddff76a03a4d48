"""What is observed of captions, and of retrieval among captioned images.

CIDEr weighs words by how many images they describe. Its intervals are those of a mean over images
with the weights of the whole set; an interval of other reference captions would be another one.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.benchmarks.records import CaptionedImage
from evaluation.intervals.observed import Observation, Observed, amounts, fractions
from evaluation.scores.captions import CaptionScores


def observe_captions(
    found: CaptionScores,
    domains: Mapping[str, Mapping[str, float]] | None = None,
    shuffled: Mapping[str, float] | None = None,
) -> Observed:
    """What the scores of captions are computed from.

    Args:
        found: the scores of all images.
        domains: for each domain (``in-domain``) the CIDEr of each of its images, with the weights
            of the domain's references.
        shuffled: CIDEr of each image with another's caption.
    """
    scores = {
        "cider": amounts(found.cider),
        "rouge_l": fractions(found.rouge_l),
        "bleu": Observation(np.array(found.bleu, dtype=np.float64), "bleu"),
    }
    if found.meteor is not None:
        scores["meteor"] = Observation(np.array(found.meteor, dtype=np.float64), "meteor")
    if found.spice is not None:
        scores["spice"] = fractions(found.spice)
    if shuffled is not None:
        scores["shuffled_cider"] = amounts([shuffled.get(image) for image in found.images])
    for name, each in (domains or {}).items():
        scores[f"domains.{name}.cider"] = amounts([each.get(image) for image in found.images])
    return Observed(found.images, found.images, scores)


def observe_retrieval(
    items: Sequence[CaptionedImage],
    image_of_text: Sequence[int],
    hits: Mapping[str, Mapping[str, Sequence[float]]],
) -> list[Observed]:
    """What the recalls of retrieval are computed from: of images and, apart, of texts.

    Intervals are those of other queries among the same images and texts.

    Args:
        items: the images, in the order of the rows.
        image_of_text: for each text the row of its image.
        hits: hits of every query (``scores.recall.hits``) by what stands before their names in the
            results: ``""`` after re-ranking, ``itc.`` before.
    """
    keys = tuple(item.image_id for item in items)
    counts: dict[int, int] = {}
    texts = []
    for row in image_of_text:
        counts[row] = counts.get(row, 0) + 1
        texts.append(f"{keys[row]}#{counts[row]}")
    sides = {"tr": (keys, keys), "ir": (tuple(texts), tuple(keys[row] for row in image_of_text))}
    found = []
    for side, (ids, images) in sides.items():
        scores = {
            before + name: fractions([float(hit) for hit in of_query])
            for before, of_names in hits.items()
            for name, of_query in of_names.items()
            if name.startswith(f"{side}_")
        }
        found.append(Observed(ids, images, scores))
    return found
