"""Captions of many images, or answers to many questions about them: a row each.

A row has the columns of ``columns``; an image that cannot be read has one row with the reason in
``failed``.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from jobs.bulk.arguments import WorkArgs
from jobs.bulk.run import Made, Named
from jobs.predict import CAPTION, VQA, PromptTemplate, load_writer
from jobs.prediction.arithmetic import Arithmetic
from modeling.language.adapters import GenerationSettings
from modeling.language.drawing import SampledSettings
from pipeline.images import ImageError, decode
from pipeline.sample import Rejected, Sample


@dataclass(frozen=True)
class DecodingArgs:
    """How a text is written; a setting that is not given is that of the task."""

    beams: int | None = None
    """beams of the search; 1: greedy; default: 5"""
    max_new_tokens: int | None = None
    """largest number of generated tokens; default: 30 of a caption, 10 of an answer"""
    min_new_tokens: int = 0
    """smallest number of generated tokens"""
    length_penalty: float | None = None
    """exponent of the length that a beam's score is divided by; default: 1, and -1 of an answer"""
    repetition_penalty: float = 1.0
    """divisor of the scores of tokens that are there already; 1: none"""
    sample: bool = False
    """draw the texts by nucleus sampling; the draws depend on --seed and the image's name alone"""
    top_p: float = 0.9
    """probability mass of the nucleus"""
    temperature: float = 1.0
    """divisor of the logits in sampling"""
    seed: int = 0
    """seed of the draws"""

    def settings(self, task: str) -> GenerationSettings:
        """The settings of a task's texts.

        Raises:
            ValueError: a setting that is none, or beams together with --sample.
        """
        base = VQA if task == "answer" else CAPTION
        given: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens or base.max_new_tokens,
            "min_new_tokens": self.min_new_tokens,
            "repetition_penalty": self.repetition_penalty,
            "one_line": base.one_line,
        }
        if self.sample:
            if self.beams not in (None, 1):
                raise ValueError(f"--beams {self.beams} and --sample exclude each other; give one")
            drawn: dict[str, Any] = {
                "top_p": self.top_p,
                "temperature": self.temperature,
                "seed": self.seed,
            }
            return SampledSettings(**given, **drawn)
        penalty = base.length_penalty if self.length_penalty is None else self.length_penalty
        beams = base.beams if self.beams is None else self.beams
        return GenerationSettings(beams=beams, length_penalty=penalty, **given)


@dataclass(frozen=True)
class CaptionArgs:
    """Checkpoint, images, and what is written about them."""

    checkpoint: str
    """folder of a stage-2 run (its latest checkpoint is taken) or of one checkpoint; a Hugging Face
    folder"""
    input: str
    """folder of images or of tars, one .tar, a .jsonl with an image in each line, one image, or an
    s3:// URL of one of these"""
    out: str
    """FILE.jsonl, FILE.csv, FILE.parquet, or a folder that receives a .txt for each image"""
    images: str | None = None
    """image folder of a .jsonl; default: the folder that it is in"""
    task: Literal["caption", "answer"] | None = None
    """caption: the prompt is continued. answer: the questions are asked. Default: answer with
    --questions"""
    prompt: str | None = None
    """text that captions continue; default: that of the checkpoint's finetuning, if it had one"""
    questions: Path | None = None
    """text file with a question on each line, all asked of every image; or a .jsonl with image and
    question in each line"""
    count: int = 1
    """number of captions of each image; above 1 with --sample"""
    beside: bool = False
    """write a .txt beside each image too"""
    prompt_template: PromptTemplate = "recipe"
    """use of the language model's chat template. chat: with it. plain: without it. recipe: as in
    training"""
    decoding: Annotated[DecodingArgs, tyro.conf.OmitArgPrefixes] = field(
        default_factory=DecodingArgs
    )
    work: Annotated[WorkArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=WorkArgs)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"--count {self.count}: give at least 1")
        if self.count > 1 and not self.decoding.sample:
            raise ValueError(f"--count {self.count} needs --sample: a search gives one text")
        if (self.task == "answer") != (self.questions is not None) and self.task is not None:
            raise ValueError("--task answer and --questions FILE belong together; give both")
        if self.questions is not None and self.prompt is not None:
            raise ValueError("--prompt is for captions; leave it out with --questions")
        self.decoding.settings(self.kind)

    @property
    def kind(self) -> str:
        """``caption`` or ``answer``."""
        return "caption" if self.questions is None else "answer"


@dataclass(frozen=True)
class Questions:
    """The questions that are asked.

    Attributes:
        of_all: questions that are asked of every image.
        of_image: questions of each image, by its name.
    """

    of_all: tuple[str, ...] = ()
    of_image: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def of(self, image: str) -> tuple[str, ...]:
        """The questions about an image."""
        return self.of_image.get(image, ()) if self.of_image else self.of_all

    @property
    def digest(self) -> str:
        """sha256 of all of them."""
        told = json.dumps([self.of_all, dict(self.of_image)], ensure_ascii=False)
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


def read_questions(path: Path | None) -> Questions:
    """Read ``--questions``.

    Raises:
        ValueError: there is no question in it, or a line lacks its image or question.
        FileNotFoundError: no such file.
    """
    if path is None:
        return Questions()
    lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"--questions {path}: no question in it; give one on each line")
    if path.suffix != ".jsonl":
        return Questions(tuple(lines))
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            image, question = record["image"], record["question"]
        except (ValueError, KeyError, TypeError) as broken:
            raise ValueError(
                f"--questions {path}, line {number}: expected an object with image and question "
                f"({broken!r})"
            ) from broken
        found[image] = (*found.get(image, ()), question)
    return Questions(of_image=found)


def columns(args: CaptionArgs) -> list[str]:
    """The columns of the rows, in their order."""
    asked = ["question"] if args.kind == "answer" else []
    counted = ["number"] if args.count > 1 else []
    return ["image", *asked, *counted, args.kind, "failed"]


def plan_of(args: CaptionArgs, checkpoint: str, questions: Questions) -> dict[str, Any]:
    """What the rows depend on, beside images and arithmetic."""
    settings = asdict(args.decoding.settings(args.kind))
    return {
        "task": args.kind,
        "checkpoint": checkpoint,
        "prompt": args.prompt,
        "prompt_template": args.prompt_template,
        "questions": questions.digest,
        "count": args.count,
        **{f"decoding.{name}": value for name, value in settings.items() if name != "keys"},
    }


class Captioning:
    """A checkpoint that writes the rows of pieces (``jobs.bulk.run.Worker``)."""

    def __init__(
        self, args: CaptionArgs, questions: Questions, device: str, arithmetic: Arithmetic
    ) -> None:
        self._args, self._questions = args, questions
        self._model = load_writer(
            args.checkpoint,
            device,
            dtype=arithmetic.dtype,
            batch_size=args.work.batch_size,
            prompt_template=args.prompt_template,
        )
        self._settings = args.decoding.settings(args.kind)

    def process(self, records: Sequence[Named]) -> Made:
        """The rows of the images, in their order."""
        size = self._args.work.batch_size
        rows: list[dict[str, Any]] = []
        for first in range(0, len(records), size):
            rows += self._rows(records[first : first + size])
        return {"items": len(rows)}, rows

    def _rows(self, records: Sequence[Named]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        pictures: dict[str, np.ndarray] = {}
        for name, record in records:
            picture, failed = read_record(record)
            rows += [row | {"failed": failed} for row in self._asked(name, bool(failed))]
            if picture is not None:
                pictures[name] = picture
        todo = [row for row in rows if not row["failed"]]
        self._write(todo, pictures)
        return [{name: row[name] for name in columns(self._args)} for row in rows]

    def _asked(self, name: str, failed: bool) -> Iterator[dict[str, Any]]:
        """A row for each text about an image, still empty; one row of an image that failed."""
        empty = {"image": name, self._args.kind: "", "question": "", "number": 0}
        if failed:
            yield empty
            return
        if self._args.kind == "caption":
            yield from ({**empty, "number": number} for number in range(self._args.count))
            return
        for question in self._questions.of(name):
            for number in range(self._args.count):
                yield {**empty, "question": question, "number": number}

    def _write(self, rows: list[dict[str, Any]], pictures: Mapping[str, np.ndarray]) -> None:
        """Fill in the texts of rows; where one of them cannot be asked, each is asked alone."""
        if not rows:
            return
        try:
            texts = self._texts(rows, pictures)
        except ValueError as wrong:
            if len(rows) == 1:
                rows[0]["failed"] = str(wrong)
                return
            for row in rows:
                self._write([row], pictures)
            return
        for row, text in zip(rows, texts, strict=True):
            row[self._args.kind] = text

    def _texts(
        self, rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, np.ndarray]
    ) -> list[str]:
        images = [pictures[row["image"]] for row in rows]
        settings = self._settings
        if isinstance(settings, SampledSettings):
            keys = (f"{row['image']}\0{row['question']}\0{row['number']}" for row in rows)
            settings = settings.of_keys(tuple(keys))
        if self._args.kind == "answer":
            return self._model.answer(images, [row["question"] for row in rows], settings)
        return self._model.caption(images, self._args.prompt, settings)


def read_record(record: Sample | Rejected) -> tuple[np.ndarray | None, str]:
    """The pixels ``HW3`` of an image, and ""; or None and the reason why it cannot be read."""
    if isinstance(record, Rejected):
        return None, record.reason
    try:
        return decode(record.image).permute(1, 2, 0).numpy(), ""
    except ImageError as broken:
        return None, broken.reason
