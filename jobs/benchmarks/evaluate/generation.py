"""Answers and captions of a stage-2 checkpoint: ours, Hugging Face's loop, and a ceiling.

Contenders: ours (``Writer``), which encodes an image once for all its questions; Hugging Face's
``generate`` with one image and one prompt a call, as its users write it; the same in batches of our
size; and as the ceiling our language model alone, with the visual prompts made before.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.benchmarks.evaluate import models
from jobs.benchmarks.evaluate.huggingface import Peer
from jobs.predict import CAPTION, VQA, Writer, load

OURS, SINGLE, BATCHED = "ours", "Hugging Face, one by one", "Hugging Face, in batches"
CEILING = "ceiling: the language model alone"
Texts = Callable[[], list[str]]


@dataclass(frozen=True)
class Case:
    """Images with prompts, and the contenders that write a text for each pair.

    Attributes:
        title: title in the table.
        unit: what is counted.
        count: number of pairs.
        work: for each contender a function that returns the texts.
    """

    title: str
    unit: str
    count: int
    work: dict[str, Texts]


def generation_case(args: Any, what: str, family: str, folder: Path) -> Case:
    """The case ``vqa`` or ``caption`` of a size's OPT or T5, or of the checkpoint that is named.

    Args:
        args: options of the benchmark.
        folder: empty folder for the models and images.

    Raises:
        ValueError: the checkpoint is not one of stage 2, or Hugging Face has no place for it.
    """
    checkpoint = args.checkpoint or models.save_writer(args.size, family, folder)
    writer = load(checkpoint, args.device, "fp32", args.batch)
    if not isinstance(writer, Writer):
        raise ValueError(f"--checkpoint {checkpoint}: give a checkpoint of stage 2")
    peer = Peer(checkpoint, folder / "huggingface", args.device)
    images = models.save_images(args.images, folder / "images")
    each = args.questions if what == "vqa" else 1
    files = [image for image in images for _ in range(each)]
    settings = replace(VQA if what == "vqa" else CAPTION, beams=args.beams, one_line=True)
    if what == "vqa" and not args.checkpoint:
        settings = replace(settings, min_new_tokens=2)  # else random weights would answer nothing
    if what == "vqa":
        known = "tinyworld" if args.checkpoint else args.size
        asked = models.questions(known, len(files))
        prompts = [writer.vqa_prompt(question) for question in asked]
    else:
        asked, prompts = [], [writer.caption_prompt] * len(files)

    def ours() -> list[str]:
        if what == "vqa":
            return writer.answer(files, asked, settings)
        return writer.caption(files, settings=settings)

    encoded = writer.encode(images)

    def alone() -> list[str]:
        texts: dict[int, str] = {}
        order = sorted(range(len(files)), key=lambda pair: len(prompts[pair]))
        for first in range(0, len(order), args.batch):
            pairs = order[first : first + args.batch]
            rows = encoded[[pair // each for pair in pairs]]
            said = writer.speak(rows, [prompts[pair] for pair in pairs], settings)
            texts |= dict(zip(pairs, said, strict=True))
        return [texts[pair] for pair in range(len(files))]

    work: dict[str, Texts] = {
        OURS: ours,
        SINGLE: lambda: peer.one_by_one(files, prompts, settings),
        BATCHED: lambda: peer.batched(files, prompts, settings, args.batch),
        CEILING: alone,
    }
    unit = "questions" if what == "vqa" else "captions"
    name = args.checkpoint.name if args.checkpoint else family
    return Case(f"{what}, {name}", unit, len(files), work)
