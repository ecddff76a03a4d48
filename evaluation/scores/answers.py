"""Scores of answers: VQA accuracy, GQA's exact match, A-OKVQA's. Each is between 0 and 1.

``METRICS`` has every variant by the name that a results file gives: published numbers of one
benchmark were made with different scorers, and are equal only where the variant is.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

Metric = Callable[[str, Sequence[str]], float]
"""A predicted answer and the reference answers -> a score between 0 and 1."""
VqaVariant = Literal["official", "lavis", "always"]
GqaVariant = Literal["normalised", "strict"]

# The official VQA normalisation, by its definition at visualqa.org/evaluation.html and the
# behaviour of its published scorer. Three oddities of that scorer are kept, since every published
# number has them: unanimous annotators switch normalisation off; the period rule looks only at the
# character behind the period and ends after 32 periods; `somebody'd` loses its apostrophe.
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
"""Reference answers that VQA accuracy needs: with fewer, no answer has three others that agree."""


def vqa_accuracy(predicted: str, answers: Sequence[str], variant: VqaVariant = "official") -> float:
    """VQA accuracy of one answer.

    Each annotator is left out in turn: the score is min(1, n/3) for n others who gave the answer,
    averaged over the annotators. With fewer than ``FEWEST_ANSWERS`` references a right answer
    scores less than 1 (0, 1/3 and 2/3 with 1, 2 and 3): use ``matches_any`` there.

    Args:
        variant: which texts are normalised before they are compared. official: both sides, and
            only where the annotators differ (the scorer of VQAv2's server). lavis: the prediction
            always, the references by punctuation alone and only where they differ (the scorer of
            BLIP-2's own numbers). always: both sides always (TextVQA).

    Raises:
        ValueError: there is no reference answer.
    """
    if not answers:
        raise ValueError("a question has no reference answers; VQA accuracy needs at least one")
    predicted = _flatten(predicted)
    references = list(answers) if variant == "lavis" else [_flatten(answer) for answer in answers]
    differ = len(set(references)) > 1
    if differ or variant != "official":
        predicted = normalise_answer(predicted)
    if differ and variant == "lavis":
        references = [_strip_punctuation(answer) for answer in references]
    elif variant == "always" or (differ and variant == "official"):
        references = [normalise_answer(answer) for answer in references]
    agreeing = sum(reference == predicted for reference in references)
    left_out = [agreeing - (reference == predicted) for reference in references]
    return sum(min(1.0, n / 3) for n in left_out) / len(references)


def exact_match(predicted: str, answer: str) -> float:
    """1.0 where both answers have the same normal form, else 0.0."""
    return float(normalise_answer(_flatten(predicted)) == normalise_answer(_flatten(answer)))


def matches_any(predicted: str, answers: Sequence[str]) -> float:
    """1.0 where the answer has the normal form of a reference answer that is not blank."""
    return max(
        (exact_match(predicted, answer) for answer in answers if answer.strip()), default=0.0
    )


def gqa_accuracy(
    predicted: str, answers: Sequence[str], variant: GqaVariant = "normalised"
) -> float:
    """1.0 where the answer is GQA's one reference, else 0.0.

    Args:
        variant: normalised: both have the same VQA normal form (BLIP-2's numbers). strict: both are
            the same string (GQA's own scorer).
    """
    if variant == "strict":
        return float(predicted == answers[0])
    return exact_match(predicted, answers[0])


def aokvqa_accuracy(predicted: str, answers: Sequence[str]) -> float:
    """A-OKVQA's score of a direct answer: min(1, n/3) for n annotators who wrote just that."""
    return min(1.0, sum(predicted == answer for answer in answers) / 3)


def videoqa_accuracy(predicted: str, answers: Sequence[str]) -> float:
    """1.0 where the answer is the one reference of MSVD-QA or MSRVTT-QA but for case, else 0.0."""
    return float(_plain(predicted) == _plain(answers[0]))


def ivqa_accuracy(predicted: str, answers: Sequence[str]) -> float:
    """iVQA's score: min(1, n/2) for n of five annotators who gave the answer, but for case."""
    return min(1.0, sum(_plain(predicted) == _plain(answer) for answer in answers) / 2)


def _plain(answer: str) -> str:
    return answer.strip().lower()


METRICS: Mapping[str, Metric] = {
    "vqa.official": vqa_accuracy,
    "vqa.lavis": partial(vqa_accuracy, variant="lavis"),
    "vqa.always": partial(vqa_accuracy, variant="always"),
    "gqa.normalised": gqa_accuracy,
    "gqa.strict": partial(gqa_accuracy, variant="strict"),
    "aokvqa.official": aokvqa_accuracy,
    "videoqa.official": videoqa_accuracy,
    "ivqa.official": ivqa_accuracy,
}
"""Metric by family and variant, as results files name it."""


def leaves_one_out(metric: str) -> bool:
    """Whether a metric is VQA accuracy, which needs ``FEWEST_ANSWERS`` references."""
    return metric.startswith("vqa.")
