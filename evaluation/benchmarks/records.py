"""The records that every benchmark is read into: captioned images, questions, and their sets."""

import random
from collections.abc import Container, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

ImageId = int | str
"""An id as its file has it; questions have ids of the same types."""

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """One image with its reference captions.

    Attributes:
        captions: the annotators' captions; none in a test set.
        domain: NoCaps' ``in-domain``, ``near-domain`` or ``out-domain``; empty elsewhere.
    """

    image_id: ImageId
    path: Path
    captions: tuple[str, ...]
    domain: str = ""

    @property
    def references(self) -> tuple[str, ...]:
        """The captions that are not blank."""
        return tuple(text for text in self.captions if text.strip())


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one image, answered freely or by a choice among candidates.

    Attributes:
        text: the question; in VSR and HatefulMemes the statement or text that is judged.
        answers: the annotators' answers; ten in VQAv2, one in GQA, none in a test set.
        question_type: group of the question by its wording (VQAv2), meaning (GQA), subject
            (ScienceQA) or relation (VSR).
        answer_type: group by the expected answer (VQAv2: yes/no, number, other) or by the
            question's structure (GQA).
        candidates: the answers to choose from; empty where the answer is free.
        correct: index of the right candidate; None in a test set and where the answer is free.
        relevance: VisDial's relevance of each candidate; empty where it was not annotated.
        context: text that belongs to the question: a hint (ScienceQA), the dialog so far (VisDial),
            the words that OCR found in the image (TextVQA).
        group: GQA's global group, within which answers are counted; empty elsewhere.
        entailed: ids of the questions whose answers follow from this one's (GQA).
        balanced: whether the answer counts for accuracy; False for GQA's unbalanced questions.
        steps: number of steps that GQA counts in the question's program; None: unknown.
        valid, plausible: answers that fit the question, and of these the ones that occur in such a
            picture (GQA's choices); None: unknown.
    """

    question_id: ImageId
    image_id: ImageId
    text: str
    answers: tuple[str, ...] = ()
    question_type: str = ""
    answer_type: str = ""
    candidates: tuple[str, ...] = ()
    correct: int | None = None
    relevance: tuple[float, ...] = ()
    context: str = ""
    group: str = ""
    entailed: tuple[str, ...] = ()
    balanced: bool = True
    steps: int | None = None
    valid: tuple[str, ...] | None = None
    plausible: tuple[str, ...] | None = None

    @property
    def answered(self) -> bool:
        """Whether there is a reference answer that is not blank, or a right candidate."""
        return self.correct is not None or any(answer.strip() for answer in self.answers)


@dataclass(frozen=True)
class QuestionSet:
    """Questions, and the file of every image that they ask about."""

    questions: tuple[Question, ...]
    images: Mapping[ImageId, Path]

    def first(self, limit: int | None) -> "QuestionSet":
        """The first ``limit`` questions with their images; None: all questions."""
        return self._only(self.questions[:limit])

    def answered(self) -> "QuestionSet":
        """The questions that have a reference answer and can therefore be scored."""
        return self._only(tuple(question for question in self.questions if question.answered))

    def without(self, paths: Container[Path]) -> "QuestionSet":
        """The questions about all images but these."""
        kept = [q for q in self.questions if self.images[q.image_id] not in paths]
        return self._only(tuple(kept))

    def only(self, ids: Container[ImageId]) -> "QuestionSet":
        """The questions with these ids."""
        return self._only(tuple(q for q in self.questions if q.question_id in ids))

    def _only(self, questions: tuple[Question, ...]) -> "QuestionSet":
        wanted = {question.image_id for question in questions}
        return QuestionSet(
            questions, {key: self.images[key] for key in self.images if key in wanted}
        )

    def shuffled(self, seed: int) -> "QuestionSet":
        """The blind control: every question is asked about the picture of another image."""
        other = derangement(list(self.images), seed)
        return replace(self, images={key: self.images[other[key]] for key in self.images})


def derangement(keys: Sequence[_Key], seed: int) -> dict[_Key, _Key]:
    """A seeded permutation that leaves no key in place (one cycle, by Sattolo's algorithm).

    Raises:
        ValueError: fewer than two keys.
    """
    if len(keys) < 2:
        raise ValueError(f"a shuffled control needs at least 2 images, got {len(keys)}")
    draw, order = random.Random(seed), list(keys)
    for i in range(len(order) - 1, 0, -1):
        j = draw.randrange(i)
        order[i], order[j] = order[j], order[i]
    return dict(zip(keys, order, strict=True))
