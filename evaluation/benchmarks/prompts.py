"""InstructBLIP's prompt of each benchmark (its appendix E), as functions of a question."""

from collections.abc import Callable, Sequence
from string import ascii_lowercase

from evaluation.benchmarks.records import Question

Prompt = Callable[[Question], str]
"""A question -> the text after the visual prompt. It ends without a blank."""

CAPTION = "A short image description:"


def question_prompt(question: Question) -> str:
    """Open questions (GQA, VizWiz, VQAv2, OK-VQA, A-OKVQA)."""
    return f"Question: {question.text.strip()} Short answer:"


def text_prompt(question: Question) -> str:
    """TextVQA: the OCR words before the question, where there are any."""
    return _after("OCR tokens: {}. ", question) + question_prompt(question)


def icon_prompt(question: Question) -> str:
    """IconQA; A-OKVQA's choices are asked in the same words."""
    options = list_options(question.candidates)
    return f"Question: {question.text.strip()} Options: {options}. Short answer:"


def science_prompt(question: Question) -> str:
    """ScienceQA: the hint before the question, where there is one."""
    asked = f"Question: {question.text.strip()} Options: {list_options(question.candidates)}."
    return _after("Context: {} ", question) + f"{asked} Answer:"


def meme_prompt(question: Question) -> str:
    """HatefulMemes: the text on the image is part of the prompt."""
    return f'This is an image with: "{question.text}" written on it. Is it hateful? Answer:'


def statement_prompt(question: Question) -> str:
    """VSR: a statement that is true or false."""
    return f'Based on the image, is this statement true or false? "{question.text}" Answer:'


def dialog_prompt(question: Question) -> str:
    """VisDial: the dialog so far, then the question."""
    return f"Dialog history: {question.context}\n {question_prompt(question)}"


def list_options(candidates: Sequence[str]) -> str:
    """The candidates with letters: ``(a) red (b) blue``."""
    lettered = zip(ascii_lowercase, candidates, strict=False)
    return " ".join(f"({letter}) {text}" for letter, text in lettered)


def _after(template: str, question: Question) -> str:
    """The context in the template, or nothing where there is no context."""
    return template.format(question.context) if question.context else ""
