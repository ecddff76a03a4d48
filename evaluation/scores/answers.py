"""Scores of answers and rankings: VQA accuracy, GQA exact match, retrieval recall.

All scores are fractions between 0 and 1. Caption metrics live in ``caption_metrics``.
"""

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# The official VQA normalisation, from its definition at visualqa.org/evaluation.html and the
# behaviour of its published scorer. Three habits of that scorer are kept because every published
# number has them: unanimous annotators switch normalisation off; the period rule looks only at what
# follows the period and stops after 32 of them; and `somebody'd` loses its apostrophe.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD_NOT_BEFORE_DIGIT = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {word: str(n) for n, word in enumerate(_NUMBERS.split())} | {"none": "0"}
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _one_apostrophe_missing(word: str) -> Iterable[str]:
    return (word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'")


_CONTRACTIONS = {
    typed: word for word in _CONTRACTED.split() for typed in _one_apostrophe_missing(word)
} | {"somebody'd": "somebodyd"}


def _strip_punctuation(text: str) -> str:
    has_number_comma = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or has_number_comma else " ")
    return _PERIOD_NOT_BEFORE_DIGIT.sub("", out, count=_MOST_PERIODS)


def normalise_answer(answer: str) -> str:
    """The official VQA normal form: punctuation, case, number words, articles, contractions.

    >>> normalise_answer("The two dogs, dont you see?")
    "2 dogs don't you see"
    """
    words = [_DIGITS.get(word, word) for word in _strip_punctuation(answer).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _flatten(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


FEWEST_ANSWERS = 4
"""Reference answers that VQA accuracy needs: with fewer, three others can never agree."""


def vqa_accuracy(predicted: str, answers: Sequence[str]) -> float:
    """Official VQA accuracy of one answer: leave-one-out min(1, n/3), averaged over annotators.

    With fewer than ``FEWEST_ANSWERS`` references the right answer scores less than 1: 0, 1/3, 2/3
    of 1, 2, 3. ``matches_any`` is for such data.

    Raises:
        ValueError: there is no reference answer.
    """
    if not answers:
        raise ValueError("a question has no reference answers; VQA accuracy needs at least one")
    predicted, references = _flatten(predicted), [_flatten(answer) for answer in answers]
    if len(set(references)) > 1:
        predicted = normalise_answer(predicted)
        references = [normalise_answer(answer) for answer in references]
    agreeing = sum(reference == predicted for reference in references)
    left_out = [agreeing - (reference == predicted) for reference in references]
    return sum(min(1.0, n / 3) for n in left_out) / len(references)


def exact_match(predicted: str, answer: str) -> float:
    """GQA: 1.0 where both answers have the same normal form."""
    return float(normalise_answer(_flatten(predicted)) == normalise_answer(_flatten(answer)))


def matches_any(predicted: str, answers: Sequence[str]) -> float:
    """1.0 where the answer has the normal form of any reference answer that is not blank."""
    return max(
        (exact_match(predicted, answer) for answer in answers if answer.strip()), default=0.0
    )


@dataclass
class Mean:
    """Sum and count of a score: what ranks or shards add up before anyone divides."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean; 0.0 of nothing."""
        return self.total / self.count if self.count else 0.0


@dataclass
class GroupedMean:
    """A mean over everything, and one per group of each grouping (question type, answer type)."""

    overall: Mean = field(default_factory=Mean)
    groups: dict[str, dict[str, Mean]] = field(default_factory=dict)

    def add(self, value: float, **group: str) -> None:
        self.overall.add(value)
        for grouping, name in group.items():
            means = self.groups.setdefault(grouping, defaultdict(Mean))
            means[name].add(value)

    def as_dict(self) -> dict[str, object]:
        """``{"accuracy": …, "count": …, "by_question_type": {name: …}, …}``."""
        groups = {
            f"by_{grouping}": {name: means[name].value for name in sorted(means)}
            for grouping, means in self.groups.items()
        }
        return {"accuracy": self.overall.value, "count": self.overall.count, **groups}


def require_predictions(wanted: Iterable[Hashable], given: Mapping, what: str) -> None:
    """Refuse a result with holes, naming what is missing.

    Raises:
        ValueError: a wanted id has no prediction.
    """
    missing = [key for key in wanted if key not in given]
    if missing:
        named = ", ".join(str(key) for key in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(f"no prediction for {what} {named}{more}; every {what} needs exactly one")


def recalls(
    scores_IT: Tensor,
    image_of_text: Sequence[int],
    cutoffs: Sequence[int] = (1, 5, 10),
    image_scores_IT: Tensor | None = None,
) -> dict[str, float]:
    """Recall of text retrieval (TR) and image retrieval (IR) at each cutoff.

    Args:
        scores_IT: one row an image, one column a text; ``-inf`` marks what was not retrieved.
        image_of_text: for each text the row of its image.
        image_scores_IT: the scores of image retrieval, where they are not those of text retrieval.

    Where the best right answer has the score of wrong ones, the share of their orders in which it
    is found is counted: two images that share a caption word for word find each other in half of
    the cases, and a constant score is worth chance.

    Returns:
        ``tr_r1, tr_r5, … ir_r10``. TR counts an image as found where any of its texts is.

    Raises:
        ValueError: a score is NaN, a shape is wrong, or an image has no text.
    """
    images, texts = scores_IT.shape
    owner = torch.as_tensor(image_of_text)
    if owner.shape != (texts,):
        raise ValueError(f"image_of_text names {len(image_of_text)} texts; scores have {texts}")
    by_text_IT = scores_IT if image_scores_IT is None else image_scores_IT
    if torch.isnan(scores_IT).any() or torch.isnan(by_text_IT).any():
        raise ValueError("retrieval scores hold NaN; the checkpoint's embeddings are broken")
    right_IT = owner[None, :] == torch.arange(images)[:, None]
    if not right_IT.any(dim=1).all():
        empty = int((~right_IT.any(dim=1)).nonzero()[0])
        raise ValueError(f"image {empty} has no text; each image needs at least one caption")
    sides = (
        ("tr", _Places.of(scores_IT, right_IT)),
        ("ir", _Places.of(by_text_IT.T, right_IT.T)),
    )
    return {
        f"{side}_r{cutoff}": float(places.hits(cutoff).mean())
        for side, places in sides
        for cutoff in cutoffs
    }


@dataclass(frozen=True)
class _Places:
    """Per query: wrong answers above the best right one, and what shares its score."""

    above: Tensor
    tied_wrong: Tensor
    tied_right: Tensor
    retrieved: Tensor

    @classmethod
    def of(cls, scores: Tensor, right: Tensor) -> "_Places":
        best = scores.masked_fill(~right, float("-inf")).amax(dim=1, keepdim=True)
        tied = scores == best
        return cls(
            above=(scores > best).sum(dim=1),
            tied_wrong=(tied & ~right).sum(dim=1),
            tied_right=(tied & right).sum(dim=1),
            retrieved=~best.squeeze(1).isneginf(),
        )

    def hits(self, cutoff: int) -> Tensor:
        """Per query the probability that a right answer is among the first ``cutoff``, fp64."""
        missed = torch.ones(len(self.above), dtype=torch.float64)
        for place in range(cutoff):  # that this place of the tied ones is a wrong one too
            left_wrong = (self.tied_wrong - place).clamp(min=0)
            share = left_wrong / (left_wrong + self.tied_right).double()
            missed = torch.where(self.above + place < cutoff, missed * share, missed)
        return torch.where(self.retrieved, 1 - missed, 0.0)
