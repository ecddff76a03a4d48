"""Scores by their published formulas, written anew: VQA accuracy, GQA's accuracy and CIDEr-D.

They have nothing in common with ``evaluation.scores`` but the tokens of CIDEr's captions. Answers
are normalised without the list of contractions, which TinyWorld's words do not need.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def normal(answer: str) -> str:
    """The normal form of visualqa.org/evaluation.html, without contractions."""
    text = " ".join(answer.split())
    comma = re.search(r"\d,\d", text) is not None
    kept = []
    for position, letter in enumerate(text):
        if letter in _MARKS:
            alone = f"{letter} " in text or f" {letter}" in text
            kept.append("" if alone or comma else " ")
        elif letter == "." and not text[position + 1 : position + 2].isdigit():
            kept.append("")
        else:
            kept.append(letter)
    words = "".join(kept).lower().split()
    words = [str(_NUMBERS.index(word)) if word in _NUMBERS else word for word in words]
    words = ["0" if word == "none" else word for word in words]
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Mean over the annotators of min(1, n / 3), n of the others agreeing; both sides normalised.

    ``(k min(1, (k - 1) / 3) + (N - k) min(1, k / 3)) / N`` where k of the N annotators agree.
    """
    total = len(references)
    agree = sum(normal(reference) == normal(answer) for reference in references)
    own, others = min(3, max(0, agree - 1)), min(3, agree)
    return (agree * own + (total - agree) * others) / (3 * total)


def plain(answer: str) -> str:
    """An answer without case and punctuation, as lmms-eval compares GQA's."""
    return re.sub(r"[^\w\s]|_", "", answer.lower())


def cider(references: Mapping[str, Sequence[str]], texts: Mapping[str, str]) -> float:
    """CIDEr-D (Vedantam et al. 2015, section 5.1) of tokenised captions, 1.0 for what papers call
    100: clipped TF-IDF cosines of 1- to 4-grams, with a Gaussian penalty on the length.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    for captions in references.values():
        seen.update({gram for caption in captions for gram in _grams(caption)})

    def weights(caption: str) -> list[dict[tuple[str, ...], float]]:
        found: list[dict[tuple[str, ...], float]] = [{} for _ in range(4)]
        for gram, count in _grams(caption).items():
            rarity = math.log(len(references)) - math.log(max(1, seen[gram]))
            found[len(gram) - 1][gram] = count * rarity
        return found

    return sum(
        sum(_similarity(weights(texts[key]), weights(caption), texts[key], caption)
            for caption in captions) / len(captions)
        for key, captions in references.items()
    ) / len(references)  # fmt: skip


def _grams(caption: str) -> Counter[tuple[str, ...]]:
    words = caption.split()
    return Counter(
        tuple(words[first : first + size])
        for size in range(1, 5)
        for first in range(len(words) - size + 1)
    )


def _similarity(mine: list[dict], other: list[dict], text: str, caption: str) -> float:
    pairs = max(0, len(text.split()) - 1), max(0, len(caption.split()) - 1)  # bigrams
    penalty = math.exp(-((pairs[0] - pairs[1]) ** 2) / (2 * 6.0**2))
    total = 0.0
    for ours, theirs in zip(mine, other, strict=True):
        lengths = math.hypot(*ours.values()) * math.hypot(*theirs.values())
        shared = sum(
            min(w, theirs[gram]) * theirs[gram] for gram, w in ours.items() if gram in theirs
        )
        total += shared / lengths if lengths else 0.0
    return 10 * penalty * total / 4
