"""Captioning: one caption an image, its scores, and the scores of the same captions shuffled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from evaluation.benchmarks.records import CaptionedImage, ImageId, derangement
from evaluation.intervals.captions import observe_captions
from evaluation.intervals.observed import Observed
from evaluation.notes import reference_notes, warn_of_empty
from evaluation.outputs import Outputs
from evaluation.scores.captions import CIDER_ON_ONE, cider, score_all, tokenise_captions
from evaluation.tasks.base import Pass, Row, without_failed
from evaluation.tasks.batches import batches
from evaluation.tasks.observing import with_items

Encode = Callable[[Sequence[Path]], Tensor]
"""Image files -> a row for each that a model computes before a text is known."""
Generate = Callable[[Tensor | None, Sequence[str]], list[str]]
"""Encoded images (None: no image) and a prompt for each -> a text for each."""


@dataclass(frozen=True)
class Captioner:
    """A model that captions images.

    Attributes:
        prompt: text that every caption continues.
    """

    encode: Encode
    generate: Generate
    prompt: str = ""


@dataclass(frozen=True)
class Picture:
    """One image to caption."""

    image_id: ImageId
    path: Path

    def told(self) -> str:
        return f"{self.image_id}\t{self.path.name}"

    def row_id(self) -> Row:
        return {"image_id": self.image_id}


@dataclass(frozen=True)
class CaptionTask:
    """Captions of images, and the scores of the captions of those that have references.

    Attributes:
        items: the images, in the order of the results.
        name: name of the task.
        files: beginning of the files' names.
        seed: seed of the shuffled control.
    """

    items: Sequence[CaptionedImage]
    name: str = "caption"
    split: str = "test"
    files: str = "captions"
    seed: int = 0

    def passes(self, done: Mapping[str, list[Any]]) -> list[Pass]:
        """One pass over the images."""
        return [Pass("", [Picture(item.image_id, item.path) for item in self.items])]

    def score(self, done: Mapping[str, list[Any]], out: Outputs) -> dict[str, Any]:
        """The scores of the captions.

        Writes ``FILES_SPLIT_results.json`` in COCO's format, and the CIDEr of each image to
        ``FILES_SPLIT_scores.json``.

        Returns:
            cider, bleu1 … bleu4, meteor, rouge_l, shuffled_cider, domains (``score_captions``),
            empty: share of empty captions, count: scored images, notes.
        """
        predictions, failed = without_failed(done[""], "images")
        out.write(f"{self.files}_{self.split}_results.json", predictions)
        empty, warnings = warn_of_empty([said["caption"] for said in predictions])
        notes = [*failed, *warnings, *reference_notes(self.items)]
        answered = {row["image_id"] for row in predictions}
        scored = [item for item in self.items if item.references and item.image_id in answered]
        if not scored:
            return {"count": 0, "empty": empty, "notes": notes}
        kept = {item.image_id for item in scored}
        scores, observed = score_captions(
            scored, [row for row in predictions if row["image_id"] in kept], self.seed
        )
        each = dict(zip(observed.items, observed.scores["cider"].rows[:, 0].tolist(), strict=True))
        out.write(f"{self.files}_{self.split}_scores.json", each)
        scores |= {"empty": empty, "notes": [*notes, *scores["notes"]]}
        return with_items(scores, [observed], out, self.name, self.split)


def caption_pictures(items: Sequence[Picture], model: Captioner, batch_size: int = 64) -> list[Row]:
    """One caption an image, in COCO's results format ``[{"image_id", "caption"}]``."""
    rows: list[Row] = []
    for batch in batches(items, batch_size):
        texts = model.generate(
            model.encode([item.path for item in batch]), [model.prompt] * len(batch)
        )
        rows += [
            {"image_id": item.image_id, "caption": text.strip()}
            for item, text in zip(batch, texts, strict=True)
        ]
    return rows


def score_captions(
    items: Sequence[CaptionedImage], results: Sequence[Mapping[str, Any]], seed: int = 0
) -> tuple[dict[str, Any], Observed]:
    """Caption metrics, and CIDEr of the same captions given to other images (seeded derangement).

    Returns:
        ``{"cider", "bleu1" …, "meteor", "rouge_l", "count", "shuffled_cider", "notes"}``, and
        ``"domains": {name: {"cider", "count"}}`` where images have them; and what they were
        computed from.

    Raises:
        ValueError: an image has no prediction or two, or no reference, or Java is missing.
    """
    references = {str(item.image_id): item.references for item in items}
    predictions = _by_id(results)
    found = score_all(references, predictions)
    scores: dict[str, Any] = {**found.metrics, "count": len(items), "notes": found.notes}
    shuffled = None
    if len(items) > 1:
        scores["shuffled_cider"], shuffled = shuffled_cider(references, predictions, seed)
    names = sorted({item.domain for item in items} - {""})
    of_image: dict[str, dict[str, float]] = {}
    for name in names:
        of_domain = [item for item in items if item.domain == name]
        score, of_image[name] = _domain(of_domain, predictions)
        scores.setdefault("domains", {})[name] = {"cider": score, "count": len(of_domain)}
        if len(of_domain) == 1:
            scores["notes"].append(f"domain {name}: {CIDER_ON_ONE}")
    return scores, observe_captions(found, of_image, shuffled)


def shuffled_cider(
    references: Mapping[str, Sequence[str]], predictions: Mapping[str, str], seed: int
) -> tuple[float, dict[str, float]]:
    """CIDEr where every image gets the caption of another: the score of fluent guessing; and that
    of each image.
    """
    other = derangement(list(references), seed)
    gold = tokenise_captions(references)
    ours = tokenise_captions({key: [predictions[other[key]]] for key in references})
    score, each = cider(gold, ours)
    return score, dict(zip(ours, each, strict=True))


def _domain(
    items: Sequence[CaptionedImage], predictions: Mapping[str, str]
) -> tuple[float, dict[str, float]]:
    """CIDEr of a domain by the weights of its references, and that of each image."""
    gold = tokenise_captions({str(item.image_id): item.references for item in items})
    ours = tokenise_captions({key: [predictions[key]] for key in gold})
    score, each = cider(gold, ours)
    return score, dict(zip(ours, each, strict=True))


def _by_id(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for result in results:
        key = str(result["image_id"])
        if key in found:
            raise ValueError(f"image {key} has two predictions; COCO's format wants exactly one")
        found[key] = result["caption"]
    return found
