"""The tasks that the options of ``jobs/evaluate.py`` ask for, with their data."""

from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from evaluation.benchmarks.catalogue import BENCHMARKS, Benchmark
from evaluation.benchmarks.folder import (
    Asked,
    Captioned,
    read_asking,
    read_captioning,
    read_retrieval,
    require_captions,
    require_java,
)
from evaluation.tasks.base import Task
from evaluation.tasks.captions import CaptionTask
from evaluation.tasks.choices import ChoiceTask, choosing_of
from evaluation.tasks.judged import JudgedTask
from evaluation.tasks.questions import QuestionTask
from evaluation.tasks.retrieval import RetrievalTask
from evaluation.tasks.scoring import scoring_of
from jobs.evaluation.arguments import EvaluateArgs
from jobs.evaluation.suite import stage_of

_SPLIT = "test"


@dataclass(frozen=True)
class TaskData:
    """The data of one task.

    Attributes:
        args: options of the task.
        task: name of the task.
        split: name of the split.
        benchmark: benchmark whose authors' files were read; None: a common format.
        content: images with captions, or questions.
        cut: whether ``--limit`` left out a part of the split.
    """

    args: EvaluateArgs
    task: str
    split: str
    benchmark: Benchmark | None
    content: Captioned | Asked
    cut: bool = False

    @property
    def stage(self) -> str:
        """Kind of the checkpoint that the task needs."""
        return stage_of(self.task)

    @property
    def candidates(self) -> tuple[str, ...]:
        """Texts among which all answers are chosen; empty: they are written."""
        return self.content.candidates if isinstance(self.content, Asked) else ()

    def paths(self) -> list[Path]:
        """The image files."""
        return self.content.paths()

    def without(self, paths: Container[Path]) -> "TaskData":
        """The data without these images."""
        return replace(self, content=self.content.without(paths))


def find_benchmark(args: EvaluateArgs, task: str) -> Benchmark | None:
    """The benchmark whose authors' files a task reads; None: it reads a common format."""
    if task == "gqa" and not (args.data / "gqa").is_dir():
        return None
    return BENCHMARKS.get(task)


def read_data(args: EvaluateArgs, task: str) -> TaskData:
    """The data of a task.

    Raises:
        ValueError, FileNotFoundError: a file is missing or not what it must be.
    """
    benchmark = find_benchmark(args, task)
    if benchmark is None:
        split = args.split or _SPLIT
        return TaskData(args, task, split, None, _read_common(args, task, split))
    split = args.split or benchmark.splits[0]
    retrieved = benchmark.way == "retrieve"
    whole = benchmark.load(args.data, split)
    data = whole.first(args.retrieval.images or args.limit if retrieved else args.limit)
    if isinstance(data, Captioned):
        require_captions(data, split) if retrieved else require_java(data)
    elif benchmark.way == "answer":
        data = replace(data, candidates=args.answering.read(benchmark, args.data))
    return TaskData(args, task, split, benchmark, data, len(data) < len(whole))


def _read_common(args: EvaluateArgs, task: str, split: str) -> Captioned | Asked:
    """The data of a task in a common format."""
    if task == "caption":
        return read_captioning(args.data, split, args.limit)
    if task == "retrieval":
        return read_retrieval(args.data, split, args.retrieval.images or args.limit)
    family: Literal["vqa", "gqa"] = "gqa" if task == "gqa" else "vqa"
    asked = read_asking(args.data, split, family, args.limit, args.further.controls)
    return replace(asked, candidates=args.answering.read(None, args.data))


def make_task(data: TaskData, model_id: str, left_out: int = 0) -> Task:
    """The task over its data.

    Args:
        model_id: name of the model in files that are handed in.
        left_out: number of images that were left out because they cannot be decoded.
    """
    name, split, benchmark, content = data.task, data.split, data.benchmark, data.content
    args, seed = data.args, data.args.further.seed
    if isinstance(content, Captioned):
        if data.stage == "stage1":
            return RetrievalTask(
                content.items,
                name=name,
                split=split,
                rerank=args.retrieval.rerank,
                k=args.retrieval.k,
                captions_per_image=args.retrieval.captions,
            )
        files = "captions" if name == "caption" else name
        return CaptionTask(content.items, name, split, files, seed)
    partial = _partial(data, left_out)
    if benchmark is not None and benchmark.way == "choose":
        choosing = choosing_of(benchmark, args.answering.candidate_score)
        return ChoiceTask(
            content.questions, choosing, name, split, args.further.controls, seed, partial
        )
    if benchmark is not None and benchmark.way == "judge":
        rules, judge = benchmark.folder(args.data), args.judging.open()
        return JudgedTask(content.questions, judge, rules, model_id, name, split)
    scoring = scoring_of(
        benchmark,
        "gqa" if name == "gqa" else "vqa",
        vqa=args.scoring.vqa_metric,
        gqa=args.scoring.gqa_metric,
        lemmatise=args.scoring.lemmatise == "spacy",
    )
    return QuestionTask(content, name, split, scoring, args.further.controls, seed, partial)


def _partial(data: TaskData, left_out: int) -> str:
    """The reason why a part of a split is not answered; empty: all of it is."""
    if data.cut:
        return f"--limit {data.args.limit}"
    return f"{left_out} images cannot be decoded" if left_out and data.benchmark else ""
