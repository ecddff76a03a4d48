"""Instructed generation with a stage-2 checkpoint: a text about an image, or a conversation.

python jobs/demo.py --checkpoint RUN --image FILE
python jobs/demo.py --checkpoint RUN --image FILE --prompt "Question: what colour is the star?"
python jobs/demo.py --checkpoint RUN --image FILE --chat

Without --prompt the model captions the image. The text is printed. With --chat each line of the
standard input is a question, and its answer a line of the output; the image is encoded once.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

import tyro

from jobs.cli import run
from jobs.predict import (
    Embedder,
    PredictDtype,
    PromptTemplate,
    Writer,
    WrongStage,
    load,
    read_picture,
)
from modeling.language.adapters import GenerationSettings


@dataclass(frozen=True)
class DemoArgs:
    """Checkpoint, image, prompt, and decoding."""

    checkpoint: Path
    """folder of a stage-2 run (its latest checkpoint is taken) or of one checkpoint"""
    image: Path
    """image file"""
    prompt: str | None = None
    """text that the model continues after the visual prompt; default: it captions the image"""
    chat: bool = False
    """a conversation: questions from the standard input, a line each; --prompt is the first"""
    beams: int = 5
    """beams of the beam search; 1: greedy"""
    max_new_tokens: int = 30
    """largest number of generated tokens"""
    min_new_tokens: int = 0
    """smallest number of generated tokens"""
    length_penalty: float = 1.0
    """exponent of the length that a beam's score is divided by; below 0, short texts win"""
    repetition_penalty: float = 1.0
    """divisor of the scores of tokens that are there already; 1: none"""
    device: str = "auto"
    """torch's name of the device: cpu or cuda; auto: cuda where there is a GPU"""
    dtype: PredictDtype = "auto"
    """number format of the frozen models. recipe: as in training. auto: the same, except fp32 in
    place of bf16 on a device without bf16 instructions"""
    prompt_template: PromptTemplate = "recipe"
    """use of the language model's chat template. chat: with it. plain: without it. recipe: as in
    training"""


def demo(args: DemoArgs) -> str:
    """The model's text.

    Raises:
        ValueError, FileNotFoundError: the image or the checkpoint is missing or not what it must
            be, such as a checkpoint of stage 1.
    """
    settings = _settings(args)
    return _writer(args).caption([args.image], args.prompt, settings)[0]


def converse(args: DemoArgs, questions: Iterable[str]) -> Iterator[str]:
    """The answers to questions about the image, each with the conversation before it.

    Args:
        questions: the questions; empty ones are passed over.

    Raises:
        ValueError, FileNotFoundError: as for ``demo``, or the conversation is longer than the
            language model's positions.
    """
    settings = _settings(args)
    chat = _writer(args).chat(args.image)
    first = [args.prompt] if args.prompt else []
    for question in itertools.chain(first, questions):
        if question.strip():
            yield chat.ask(question, settings)


def _settings(args: DemoArgs) -> GenerationSettings:
    return GenerationSettings(
        args.beams,
        args.max_new_tokens,
        args.min_new_tokens,
        args.length_penalty,
        args.repetition_penalty,
    )


def _writer(args: DemoArgs) -> Writer:
    read_picture(args.image)  # a wrong file is found before minutes of loading
    model = load(args.checkpoint, args.device, args.dtype, prompt_template=args.prompt_template)
    if isinstance(model, Embedder):
        raise WrongStage(model.lacks)
    return model


def _typed() -> Iterator[str]:
    """Lines of the standard input; a person is shown where to type."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def main() -> int:
    args = tyro.cli(DemoArgs, description=__doc__)
    if not args.chat:
        print(demo(args))
        return 0
    for answer in converse(args, _typed()):
        print(answer, flush=True)
    return 0


if __name__ == "__main__":
    run(main)
