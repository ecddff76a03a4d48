"""InstructBLIP's prompt of each benchmark (its appendix E), as functions of a question."""

from collections.abc import Callable

from evaluation.benchmarks.records import Question
from modeling import prompts as words
from pipeline.instructions.templates import list_options

Prompt = Callable[[Question], str]
"""A question -> the text after the visual prompt. It ends without a blank."""

CAPTION = words.INSTRUCT_CAPTION


def question_prompt(question: Question) -> str:
    """Open questions (GQA, VizWiz, VQAv2, OK-VQA, A-OKVQA)."""
    return words.INSTRUCT_QUESTION.format(question.text.strip())


def text_prompt(question: Question) -> str:
    """TextVQA: the OCR words before the question, where there are any."""
    return _after(words.INSTRUCT_OCR, question) + question_prompt(question)


def icon_prompt(question: Question) -> str:
    """IconQA; A-OKVQA's choices are asked in the same words."""
    options = list_options(question.candidates)
    return words.INSTRUCT_OPTIONS.format(question.text.strip(), options)


def science_prompt(question: Question) -> str:
    """ScienceQA: the hint before the question, where there is one."""
    options = list_options(question.candidates)
    asked = words.INSTRUCT_SCIENCE.format(question.text.strip(), options)
    return _after(words.INSTRUCT_HINT, question) + asked


def meme_prompt(question: Question) -> str:
    """HatefulMemes: the text on the image is part of the prompt."""
    return words.INSTRUCT_MEME.format(question.text)


def statement_prompt(question: Question) -> str:
    """VSR: a statement that is true or false."""
    return words.INSTRUCT_STATEMENT.format(question.text)


def dialog_prompt(question: Question) -> str:
    """VisDial: the dialog so far, then the question."""
    return words.INSTRUCT_DIALOG.format(question.context, question_prompt(question))


def plain_prompt(question: Question) -> str:
    """LLaVA-Bench: the question alone."""
    return question.text.strip()


def _after(template: str, question: Question) -> str:
    """The context in the template, or nothing where there is no context."""
    return template.format(question.context) if question.context else ""
