"""The templates of InstructBLIP's instructions, and the words around questions.

They are the templates of the slides on BLIP-2 and its follow-ups, as these print them, without
``<Image>``: the visual prompt stands in front of every one. ``{}`` is the place of the question or
answer. No instruction ends with a blank.
"""

from collections.abc import Sequence
from string import ascii_lowercase

MOST_OCR_TOKENS = 30

CAPTION = (
    "A short image caption:",
    "A short image description:",
    "A photo of",
    "An image that shows",
    "Write a short description for the image.",
    "Write a description for the photo.",
    "Provide a description of what is presented in the photo.",
    "Briefly describe the content of the image.",
    "Can you briefly explain what you see in the image?",
    "Could you use a few words to describe what you perceive in the photo?",
    "Please provide a short depiction of the picture.",
    "Using language, provide a short account of the image.",
    "Use a few words to illustrate what is happening in the picture.",
)
VQA = (
    "{}",
    "Question: {}",
    "{} A short answer to the question is",
    "Q: {} A:",
    "Question: {} Short answer:",
    "Given the image, answer the following question with no more than three words. {}",
    "Based on the image, respond to this question with a short answer: {}. Answer:",
    "Use the provided image to answer the question: {} Provide your answer as short as possible:",
    'What is the answer to the following question? "{}"',
    'The question "{}" can be answered using the image. A short answer is',
)
VQG = (
    "Given the image, generate a question whose answer is: {}. Question:",
    "Based on the image, provide a question with the answer: {}. Question:",
    'Given the visual representation, create a question for which the answer is "{}".',
    "From the image provided, craft a question that leads to the reply: {}. Question:",
    "Considering the picture, come up with a question where the answer is: {}.",
    "Taking the image into account, generate a question that has the answer: {}. Question:",
)

_OCR = "OCR tokens: {}. "
_OPTIONS = "{} Options: {}."


def list_options(options: Sequence[str]) -> str:
    """The options with letters: ``(a) red (b) blue``.

    Raises:
        ValueError: there are more options than letters.
    """
    if len(options) > len(ascii_lowercase):
        raise ValueError(f"{len(options)} options: at most {len(ascii_lowercase)} have a letter")
    lettered = zip(ascii_lowercase, options, strict=False)
    return " ".join(f"({letter}) {text}" for letter, text in lettered)


def with_options(question: str, options: Sequence[str]) -> str:
    """A question with its options: ``What color? Options: (a) red (b) blue.``"""
    return _OPTIONS.format(question, list_options(options)) if options else question


def with_ocr(instruction: str, tokens: Sequence[str]) -> str:
    """An instruction behind the first 30 words that OCR found; without any, as it is."""
    return _OCR.format(", ".join(tokens[:MOST_OCR_TOKENS])) + instruction if tokens else instruction


def fill(template: str, text: str) -> str:
    """The template with a text in its place; braces in the text stay as they are."""
    return template.replace("{}", text.strip())
