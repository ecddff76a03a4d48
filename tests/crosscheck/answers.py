"""A checkpoint's texts beside those of Hugging Face's classes, which load the exported checkpoint.

Both sides have the same images, prompts and decoding, in fp32. Ours are written in batches,
theirs one at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from evaluation.benchmarks.records import CaptionedImage, QuestionSet
from jobs.benchmarks.evaluate.huggingface import Peer
from jobs.predict import CAPTION, VQA, Writer

SEARCHES = {"greedy": 1, "beams": 5}


@dataclass(frozen=True)
class Compared:
    """Texts of both sides for the same images and prompts.

    Attributes:
        what: ``answers`` or ``captions``.
        search: ``greedy`` or ``beams``.
        ours: our texts.
        theirs: Hugging Face's texts.
    """

    what: str
    search: str
    ours: list[str]
    theirs: list[str]

    @property
    def equal(self) -> int:
        """Number of equal texts."""
        return sum(mine == other for mine, other in zip(self.ours, self.theirs, strict=True))


def compare(
    writer: Writer, peer: Peer, questions: QuestionSet, items: Sequence[CaptionedImage]
) -> list[Compared]:
    """Answers to all questions and captions of all images, greedy and by beam search."""
    files = [questions.images[question.image_id] for question in questions.questions]
    asked = [question.text for question in questions.questions]
    prompts = [writer.vqa_prompt(text) for text in asked]
    images = [item.path for item in items]
    found = []
    for search, beams in SEARCHES.items():
        settings = replace(VQA, beams=beams)
        ours = writer.answer(files, asked, settings)
        found.append(Compared("answers", search, ours, peer.one_by_one(files, prompts, settings)))
        settings = replace(CAPTION, beams=beams, one_line=True)
        ours = writer.caption(images, settings=settings)
        theirs = peer.one_by_one(images, [writer.caption_prompt] * len(images), settings)
        found.append(Compared("captions", search, ours, theirs))
    return found
