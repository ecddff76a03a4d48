"""Captioning: one caption an image, its scores, and the scores of the same captions shuffled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from evaluation.benchmarks.records import CaptionedImage, derangement
from evaluation.notes import reference_notes, warn_of_empty
from evaluation.outputs import Keep, Outputs, keep_nothing
from evaluation.scores.captions import CIDER_ON_ONE, caption_metrics, cider, tokenise_captions
from evaluation.work import chunks

Encode = Callable[[Sequence[Path]], Tensor]
"""Image files -> a row for each that a model computes before a text is known."""
Generate = Callable[[Tensor | None, Sequence[str]], list[str]]
"""Encoded images (None: no image) and a prompt for each -> a text for each."""


@dataclass(frozen=True)
class Captioner:
    """A model that captions images.

    Attributes:
        prompt: text that every caption continues.
        remedy: advice for the user where most captions are empty.
    """

    encode: Encode
    generate: Generate
    prompt: str = ""
    remedy: str = ""


def evaluate_captions(
    items: Sequence[CaptionedImage],
    model: Captioner,
    out: Outputs,
    *,
    task: str = "captions",
    split: str = "test",
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, Any]:
    """Caption the images, and score the captions of those that have references.

    Writes ``TASK_SPLIT_results.json`` in COCO's format, and the CIDEr of each image to
    ``TASK_SPLIT_scores.json``.

    Args:
        task: name of the task, as its files begin.
        seed: seed of the shuffled control.

    Returns:
        cider, bleu1 … bleu4, meteor, rouge_l, shuffled_cider, domains (``score_captions``), empty:
        share of empty captions, count: scored images, notes.
    """
    caption = partial(caption_images, items, model.encode, model.generate, model.prompt, batch_size)
    predictions = out.predictions(f"{task}_{split}_results.json", lambda keep: caption(keep=keep))
    empty, warnings = warn_of_empty([said["caption"] for said in predictions], model.remedy)
    notes = [*warnings, *reference_notes(items)]
    scored = [item for item in items if item.references]
    if not scored:
        return {"count": 0, "empty": empty, "notes": notes}
    scores = score_captions(scored, predictions, seed)
    out.write(f"{task}_{split}_scores.json", scores.pop("cider_per_image"))
    if "shuffled" in scores:
        scores["shuffled_cider"] = scores.pop("shuffled")["cider"]
    return scores | {"empty": empty, "notes": [*notes, *scores["notes"]]}


def caption_images(
    items: Sequence[CaptionedImage],
    encode: Encode,
    generate: Generate,
    prompt: str = "",
    batch_size: int = 64,
    *,
    keep: Keep = keep_nothing,
) -> list[dict[str, Any]]:
    """One caption an image, in COCO's results format ``[{"image_id", "caption"}]``.

    Args:
        keep: called with the captions of each batch as they come.
    """
    results: list[dict[str, Any]] = []
    with tqdm(total=len(items), desc="caption", unit="image") as progress:
        for batch in chunks(items, batch_size):
            encoded = encode([item.path for item in batch])
            texts = generate(encoded, [prompt] * len(batch))
            captions = [
                {"image_id": item.image_id, "caption": text.strip()}
                for item, text in zip(batch, texts, strict=True)
            ]
            keep(captions)
            results += captions
            progress.update(len(batch))
    return results


def score_captions(
    items: Sequence[CaptionedImage], results: Sequence[Mapping[str, Any]], seed: int = 0
) -> dict[str, Any]:
    """Caption metrics, and CIDEr of the same captions given to other images (seeded derangement).

    Returns:
        ``{"cider", "bleu1" …, "meteor", "rouge_l", "count", "shuffled": {"cider"}, "notes",
        "cider_per_image"}``, and ``"domains": {name: {"cider", "count"}}`` where images have them.

    Raises:
        ValueError: an image has no prediction or two, or no reference, or Java is missing.
    """
    references = {str(item.image_id): item.references for item in items}
    predictions = _by_id(results)
    metrics, each, notes = caption_metrics(references, predictions)
    scores: dict[str, Any] = {**metrics, "count": len(items), "notes": notes}
    scores["cider_per_image"] = each
    if len(items) > 1:
        scores["shuffled"] = {"cider": shuffled_cider(references, predictions, seed)}
    domains = {item.domain for item in items} - {""}
    if domains:
        scores["domains"] = {
            name: _domain([item for item in items if item.domain == name], predictions)
            for name in sorted(domains)
        }
        alone = [name for name, domain in scores["domains"].items() if domain["count"] == 1]
        notes += [f"domain {name}: {CIDER_ON_ONE}" for name in alone]
    return scores


def shuffled_cider(
    references: Mapping[str, Sequence[str]], predictions: Mapping[str, str], seed: int
) -> float:
    """CIDEr where every image gets the caption of another: the score of fluent guessing."""
    other = derangement(list(references), seed)
    gold = tokenise_captions(references)
    return cider(gold, tokenise_captions({k: [predictions[other[k]]] for k in references}))[0]


def _domain(items: Sequence[CaptionedImage], predictions: Mapping[str, str]) -> dict[str, Any]:
    gold = tokenise_captions({str(item.image_id): item.references for item in items})
    ours = tokenise_captions({key: [predictions[key]] for key in gold})
    return {"cider": cider(gold, ours)[0], "count": len(items)}


def _by_id(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for result in results:
        key = str(result["image_id"])
        if key in found:
            raise ValueError(f"image {key} has two predictions; COCO's format wants exactly one")
        found[key] = result["caption"]
    return found
