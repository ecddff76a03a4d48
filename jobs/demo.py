"""One image, one prompt, one answer: instructed generation with a stage-2 checkpoint.

python jobs/demo.py --checkpoint RUN --image FILE
python jobs/demo.py --checkpoint RUN --image FILE --prompt "Question: what colour is the star?"
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

import tyro

from jobs.cli import run
from jobs.predict import PredictDtype, load, read_picture
from modeling.language.adapters import GenerationSettings


@dataclass(frozen=True)
class DemoArgs:
    """What to look at and what to say."""

    checkpoint: Path
    """a stage-2 run's folder (its latest checkpoint) or one checkpoint's folder"""
    image: Path
    prompt: str | None = None
    """text after the visual prompt, as given; without one the model captions the image"""
    beams: int = 5
    max_new_tokens: int = 30
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    device: str = "cpu"
    dtype: PredictDtype = "auto"
    """number format of the frozen models: recipe is the one they were trained with, and so is auto,
    but fp32 in place of bf16 where the device multiplies that in software"""
    prompt_template: Literal["recipe", "plain", "chat"] = "recipe"
    """chat: write the prompt with the language model's chat template; recipe: as in training"""


def demo(args: DemoArgs) -> str:
    """The model's text.

    Raises:
        ValueError, FileNotFoundError: image or checkpoint is missing or not what it must be.
    """
    settings = GenerationSettings(
        args.beams,
        args.max_new_tokens,
        args.min_new_tokens,
        args.length_penalty,
        args.repetition_penalty,
    )
    read_picture(args.image)  # a wrong file is found before minutes of loading
    model = load(args.checkpoint, args.device, args.dtype, prompt_template=args.prompt_template)
    return model.caption([args.image], args.prompt, settings)[0]


def main() -> int:
    print(demo(tyro.cli(DemoArgs, description=__doc__)))
    return 0


if __name__ == "__main__":
    run(main)
