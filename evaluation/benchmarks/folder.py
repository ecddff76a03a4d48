"""The folder of a benchmark, and the data of a task that are read from it.

It holds ``images/SPLIT``, and ``annotations/`` in the formats of COCO, Karpathy, VQAv2 and GQA
(docs/evaluation.md).
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from evaluation.benchmarks.coco import read_coco_captions
from evaluation.benchmarks.gqa import read_gqa
from evaluation.benchmarks.karpathy import read_karpathy
from evaluation.benchmarks.records import CaptionedImage, ImageId, QuestionSet
from evaluation.benchmarks.vqav2 import read_vqa
from evaluation.scores.captions import find_java


def read_captions(data: Path, split: str) -> list[CaptionedImage]:
    """The split's captioned images: COCO's file where there is one, else Karpathy's."""
    annotations, images = data / "annotations", data / "images" / split
    coco, karpathy = annotations / f"captions_{split}.json", annotations / "dataset_karpathy.json"
    if coco.is_file() or not karpathy.is_file():
        return read_coco_captions(coco, images)
    folder = images if images.is_dir() else data / "images"
    return read_karpathy(karpathy, folder, split)


def read_questions(data: Path, split: str, task: Literal["vqa", "gqa"]) -> QuestionSet:
    """The split's questions from VQAv2's or GQA's files; a test set has no answers."""
    annotations, images = data / "annotations", data / "images" / split
    if task == "gqa":
        return read_gqa(annotations / f"gqa_{split}_questions.json", images)
    answers = annotations / f"vqa_{split}_annotations.json"
    questions = annotations / f"vqa_{split}_questions.json"
    return read_vqa(questions, answers if answers.is_file() else None, images)


def true_captions(data: Path, split: str, questions: QuestionSet) -> dict[ImageId, str] | None:
    """The first reference caption of each image that is asked about; None without captions.

    TinyWorld's first caption names everything in the image.

    Raises:
        ValueError: there are captions, but not for an image that is asked about.
    """
    if not (data / "annotations" / f"captions_{split}.json").is_file():
        return None
    # Joined by file: GQA writes the id 42 as "42", or with zeros in front.
    by_file = {i.path.resolve(): i.references for i in read_captions(data, split) if i.references}
    if not by_file:
        return None
    files = {key: path.resolve() for key, path in questions.images.items()}
    missing = [key for key, file in files.items() if file not in by_file]
    if missing:
        raise ValueError(
            f"captions_{split}.json has no caption for image {missing[0]}, which the text-only "
            "control reads; add it, or leave the controls out with --no-controls"
        )
    return {key: by_file[file][0] for key, file in files.items()}


@dataclass(frozen=True)
class Captioned:
    """Data of captioning and retrieval: images with their captions."""

    items: tuple[CaptionedImage, ...]

    def __len__(self) -> int:
        return len(self.items)

    def paths(self) -> list[Path]:
        """The image file of each entry."""
        return [item.path for item in self.items]

    def first(self, limit: int | None) -> "Captioned":
        """The first ``limit`` images; None: all."""
        return Captioned(self.items[:limit])

    def without(self, paths: Container[Path]) -> "Captioned":
        """The data without these images."""
        return Captioned(tuple(item for item in self.items if item.path not in paths))


@dataclass(frozen=True)
class Asked:
    """Data of VQA and GQA: questions about images.

    Attributes:
        contexts: a true caption of each image, which the text-only control reads; None: no control.
        candidates: texts among which the model chooses its answers; empty: it writes them.
    """

    questions: QuestionSet
    contexts: Mapping[ImageId, str] | None = None
    candidates: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.questions.questions)

    def paths(self) -> list[Path]:
        """The image files that are asked about."""
        return list(self.questions.images.values())

    def first(self, limit: int | None) -> "Asked":
        """The first ``limit`` questions; None: all."""
        return Asked(self.questions.first(limit), self.contexts)

    def without(self, paths: Container[Path]) -> "Asked":
        """The data without the questions about these images."""
        return replace(self, questions=self.questions.without(paths))


def read_captioning(data: Path, split: str, limit: int | None = None) -> Captioned:
    """The first ``limit`` images of the split.

    Raises:
        FileNotFoundError, ValueError: as ``read_captions``; or there are captions to score against
            and there is no Java for the scorers.
    """
    data_of_task = Captioned(tuple(read_captions(data, split)[:limit]))
    require_java(data_of_task)
    return data_of_task


def require_java(data: Captioned) -> None:
    """Look for Java where captions will be scored.

    Raises:
        ValueError: there are captions to score against and there is no Java for the scorers.
    """
    if any(item.references for item in data.items):
        find_java()


def read_asking(
    data: Path,
    split: str,
    task: Literal["vqa", "gqa"],
    limit: int | None = None,
    controls: bool = True,
) -> Asked:
    """The first ``limit`` questions of the split, and captions for the text-only control.

    Raises:
        FileNotFoundError, ValueError: as ``read_questions`` and ``true_captions``.
    """
    questions = read_questions(data, split, task).first(limit)
    answered = questions.answered()
    if not controls or not answered.questions:
        return Asked(questions)
    return Asked(questions, true_captions(data, split, answered))


def read_retrieval(data: Path, split: str, limit: int | None = None) -> Captioned:
    """The first ``limit`` images of the split, each with a caption.

    Raises:
        FileNotFoundError, ValueError: as ``read_captions``; or an image has no caption.
    """
    data_of_task = Captioned(tuple(read_captions(data, split)[:limit]))
    require_captions(data_of_task, split)
    return data_of_task


def require_captions(data: Captioned, split: str) -> None:
    """Look for an image without a caption, which retrieval cannot use.

    Raises:
        ValueError: an image has no caption.
    """
    mute = next((item for item in data.items if not item.references), None)
    if mute is not None:
        raise ValueError(
            f"image {mute.image_id} of split {split!r} has no caption; retrieval needs one of each"
        )
