"""A worker of an evaluation: one loaded checkpoint that answers chunks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from evaluation.benchmarks.catalogue import Benchmark
from evaluation.chunks.cut import Chunk
from evaluation.images.remote import Home
from evaluation.tasks.base import Answer, Answers, Row
from evaluation.tasks.captions import caption_pictures
from evaluation.tasks.choices import choose, choosing_of
from evaluation.tasks.questions import answer_askings
from evaluation.tasks.retrieval import embed_and_match
from jobs.evaluation.arguments import EvaluateArgs
from jobs.predict import Embedder, Writer, load
from jobs.prediction.adapters import answerer, captioner, embedders, talker
from jobs.prediction.arithmetic import Arithmetic
from modeling.linear import products_by


@dataclass(frozen=True)
class TaskSettings:
    """The part of a task's data that a worker needs beside the items of a chunk.

    Attributes:
        args: options of the task.
        benchmark: benchmark that the task is; None: a common format.
        candidates: texts among which all answers are chosen; empty: they are written.
    """

    args: EvaluateArgs
    benchmark: Benchmark | None
    candidates: tuple[str, ...] = ()


class Answering:
    """A checkpoint that answers the chunks of an evaluation.

    Args:
        tasks: settings of each task.
        device: torch's name of the device.
        arithmetic: number format of the frozen models, and the library of all fp32 matrix products
            on a CPU, so that every worker makes the same bits.
        home: folder of the images; None: they are where the items say.
        model: the checkpoint, if it is loaded already.
    """

    def __init__(
        self,
        args: EvaluateArgs,
        tasks: Mapping[str, TaskSettings],
        device: str,
        arithmetic: Arithmetic,
        *,
        home: Home | None = None,
        model: Writer | Embedder | None = None,
    ) -> None:
        self._products, self._home = arithmetic.products, home
        assert args.checkpoint is not None
        self._model = model or load(
            args.checkpoint,
            device,
            arithmetic.dtype,
            args.batch_size,
            args.further.prompt_template,
        )
        self._answers = {name: self._answer(name, settings) for name, settings in tasks.items()}

    def process(self, chunk: Chunk | None) -> Answers | None:
        """The answers to a chunk, in the order of its items; None where there is no chunk."""
        if chunk is None:
            return None
        if self._home is not None:
            chunk = replace(chunk, items=tuple(self._home.moved(chunk.items)))
        with products_by(self._products), torch.inference_mode():
            return answer_each(chunk, self._answers[chunk.task])

    def _answer(self, task: str, settings: TaskSettings) -> Answer:
        """The function that answers items of a task."""
        args, model, benchmark = settings.args, self._model, settings.benchmark
        if isinstance(model, Embedder):
            embed = embedders(model, args.retrieval.rerank)
            return lambda look, items: embed_and_match(look, items, embed, args.batch_size)
        if benchmark is not None and benchmark.way == "choose":
            choosing = choosing_of(benchmark, args.answering.candidate_score)
            return lambda _, items: choose(items, model.rank, choosing, args.batch_size)
        if benchmark is not None and benchmark.way == "judge":
            talks = talker(model, benchmark, args.judging.longest_answer)
            return lambda _, items: answer_askings(items, talks, args.batch_size)
        instructed = args.scoring.prompts == "instruct"
        if task == "caption" or (benchmark is not None and benchmark.way == "caption"):
            captions = captioner(model, args.further.caption_prompt, instructed)
            return lambda _, items: caption_pictures(items, captions, args.batch_size)
        answers = answerer(
            model,
            benchmark if instructed else None,
            settings.candidates,
            args.answering.candidate_score,
        )
        return lambda _, items: answer_askings(items, answers, args.batch_size)


def answer_each(chunk: Chunk, answer: Answer) -> Answers:
    """The answers to a chunk; an item that fails has a row with the reason, and no answer.

    Where some of the items fail, each is asked alone.

    Raises:
        ValueError, OSError: all items fail, or the answers are arrays (retrieval), where every item
            counts.
    """
    try:
        return answer(chunk.look, chunk.items)
    except (ValueError, OSError) as failed:
        if len(chunk.items) == 1 or not hasattr(chunk.items[0], "row_id"):
            raise
        first = failed
    rows: list[Row] = []
    for item in chunk.items:
        try:
            rows += cast(list[Row], answer(chunk.look, [item]))
        except (ValueError, OSError) as failed:
            rows.append({**item.row_id(), "failed": str(failed)})
    if all("failed" in row for row in rows):
        raise first
    return rows


def settings_of(data: Sequence[Any]) -> dict[str, TaskSettings]:
    """The settings of each task (``jobs.evaluation.tasks.TaskData``)."""
    return {
        of_task.task: TaskSettings(of_task.args, of_task.benchmark, of_task.candidates)
        for of_task in data
    }
