"""Normalisation of captions and questions before a tokenizer reads them.

The reference (salesforce/LAVIS, its processors ``blip_caption`` and ``blip_question``) lower-cases
a text, takes ten punctuation marks out and keeps 50 words, in training, retrieval and questions
alike. Its released checkpoints know no other texts.
"""

import re
from typing import Literal

TextRule = Literal["reference", "plain"]
"""``reference``: as LAVIS does it; ``plain``: only white space in captions is normalised."""
SampleText = Literal["reference", "plain", "conversation"]
"""The text of a training sample: a caption or answer under a ``TextRule``, or a ``conversation`` as
JSON, which a caption is too: as the answer to the image alone."""

MAX_WORDS = 50
_MARKS = re.compile(r'[.!"()*#:;~]')


def caption_text(text: str, rule: TextRule) -> str:
    """A caption as a model reads it; may be empty.

    >>> caption_text('A "red" car (No. 7), parked!', "reference")
    'a red car no 7 , parked'
    """
    if rule == "plain":
        return " ".join(text.split())
    return " ".join(_MARKS.sub(" ", text.lower()).split()[:MAX_WORDS])


def question_text(text: str, rule: TextRule) -> str:
    """A question as a model reads it: marks go without leaving a space, the rest keeps its spaces.

    >>> question_text("What Color is the dog's (left) collar?", "reference")
    "what color is the dog's left collar?"
    """
    if rule == "plain":
        return text
    words = _MARKS.sub("", text.lower()).rstrip(" ").split(" ")
    return " ".join(words[:MAX_WORDS])
