"""Captioning: generate one caption an image, score it, and score the same captions shuffled."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from tqdm import tqdm

from evaluation.benchmarks.readers import CaptionedImage, derangement
from evaluation.scores.captions import CIDER_ON_ONE, caption_metrics, cider, tokenise_captions

Encode = Callable[[Sequence[Path]], Tensor]
"""Image files -> what a model makes of each before a text is known: ``B`` rows."""
Generate = Callable[[Tensor | None, Sequence[str]], list[str]]
"""Encoded images (None: text only) and ``B`` text prompts -> ``B`` texts."""

Keep = Callable[[list[dict[str, Any]]], None]
"""A writer of predictions, called with each batch of them as soon as it is there."""

_Item = TypeVar("_Item")


def keep_nothing(batch: list[dict[str, Any]]) -> None:
    """Write nothing."""


def chunks(items: Sequence[_Item], size: int) -> Iterator[list[_Item]]:
    """Consecutive lists of at most ``size`` items.

    Raises:
        ValueError: ``size`` is below 1.
    """
    if size < 1:
        raise ValueError(f"batch size must be at least 1, got {size}")
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


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

    ``keep`` is given the captions of each batch as they come.
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


def empty_texts(texts: Sequence[str], remedy: str) -> tuple[float, str]:
    """The share of texts that hold nothing, and a warning where it is more than half.

    Args:
        remedy: what the user can do about it.

    Returns:
        A fraction, and one sentence or "".
    """
    share = sum(not text.strip() for text in texts) / max(1, len(texts))
    if share <= 0.5:
        return share, ""
    return share, (
        f"{share:.0%} of {len(texts)} texts are empty: the language model ends at once after "
        f"this prompt, and the scores say nothing about what it sees; {remedy}"
    )


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


def reference_notes(items: Sequence[CaptionedImage]) -> list[str]:
    """What a reader of the scores must know about the references, a sentence each."""
    counts = [len(item.references) for item in items if item.references]
    if not counts:
        return ["nothing was scored: no image has a reference caption"]
    notes = []
    if len(counts) < len(items):
        notes.append(
            f"{len(items) - len(counts)} of {len(items)} images have no reference caption; they "
            "were captioned and not scored"
        )
    blank = sum(len(item.captions) - len(item.references) for item in items)
    if blank:
        notes.append(f"{blank} reference captions are blank and were left out")
    if max(counts) == 1:
        notes.append(
            "every image has one reference caption; published scores are against 5 (COCO) or 10 "
            "(NoCaps) and not comparable"
        )
    return notes


def shuffled_cider(
    references: Mapping[str, Sequence[str]], predictions: Mapping[str, str], seed: int
) -> float:
    """CIDEr where every image gets the caption of another: what fluent guessing is worth."""
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
