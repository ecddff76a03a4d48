"""Score a checkpoint: captioning and zero-shot VQA (stage 2), retrieval (stage 1).

    python jobs/evaluate.py --checkpoint RUN --data DIR --tasks caption vqa --split test --out OUT
    python jobs/evaluate.py --checkpoint RUN --data DIR --tasks vqa --table 2 --row vit-g-flant5-xl
    python jobs/evaluate.py --checkpoint RUN --data DIR --tasks vqa --answers rank --candidates FILE

DIR holds the folders images/SPLIT and annotations. Files in annotations are captions_SPLIT.json
(COCO) or dataset_karpathy.json, vqa_SPLIT_questions.json and vqa_SPLIT_annotations.json (VQAv2),
and gqa_SPLIT_questions.json. OUT receives results.json and the predictions in the formats that the
official servers take. A test set without references is predicted and not scored. All scores are
fractions between 0 and 1; CIDEr 1.0 is printed as 100 in papers. See docs/evaluation.md.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

import tyro
from torch import Tensor

from evaluation import tables
from evaluation.benchmarks.candidates import read_candidates
from evaluation.benchmarks.folder import (
    Asked,
    Captioned,
    read_asking,
    read_captioning,
    read_retrieval,
)
from evaluation.benchmarks.unreadable import find_unreadable, name_some
from evaluation.caption import Captioner, evaluate_captions
from evaluation.outputs import Outputs
from evaluation.results import beside_paper, print_results
from evaluation.retrieval import Embedders, Rerank, evaluate_retrieval, itm_scores
from evaluation.vqa import Answerer, evaluate_questions
from jobs.cli import run
from jobs.predict import CAPTION, VQA, Embedder, PredictDtype, PromptTemplate, Writer, load
from modeling.language.ranking import Length

Task = Literal["caption", "vqa", "gqa", "retrieval"]
Data = Captioned | Asked


@dataclass(frozen=True)
class RetrievalArgs:
    """Options of the task retrieval."""

    images: Annotated[int | None, tyro.conf.arg(name="retrieval-images")] = None
    """number of images among which is searched; default: --limit, or all"""
    captions: Annotated[int | None, tyro.conf.arg(name="retrieval-captions")] = None
    """number of captions used of each image; default: all"""
    k: int = 128
    """number of candidates that ITM ranks again (paper, section 4.4)"""
    rerank: Rerank = "reference"
    """score of a candidate. reference: ITM's logit of "match" plus the ITC similarity, as in LAVIS.
    odds: ITM's log-odds plus the similarity over the temperature, the scale of their losses"""


@dataclass(frozen=True)
class AnswerArgs:
    """Options of the tasks vqa and gqa."""

    answers: Literal["generate", "rank"] = "generate"
    """origin of an answer. generate: the language model writes it. rank: it is the likeliest of the
    candidates"""
    candidates: Path | None = None
    """file of the candidates: a text file with one on each line; or annotations of VQAv2's format
    or GQA's questions (.json), best of the training split, whose most frequent answers are taken"""
    most_frequent: int = 1500
    """number of answers that are taken from annotations"""
    candidate_score: Length = "sum"
    """score of a candidate. sum: of the log-probabilities of its tokens, as in InstructBLIP. mean:
    over the tokens, which favours long candidates"""

    def __post_init__(self) -> None:
        if (self.answers == "rank") != (self.candidates is not None):
            raise ValueError("--answers rank and --candidates FILE belong together; give both")
        if self.most_frequent < 1:
            raise ValueError(f"--most-frequent {self.most_frequent}: give at least 1")

    def read(self) -> tuple[str, ...]:
        """The candidates; none where answers are generated."""
        if self.candidates is None:
            return ()
        return tuple(read_candidates(self.candidates, self.most_frequent))


@dataclass(frozen=True)
class FurtherArgs:
    """Options that are rarely changed."""

    caption_prompt: str | None = None
    """text that captions continue; default: the prompt of finetuning, or none"""
    controls: bool = True
    """also answer with the images shuffled, and from a true caption without the image"""
    seed: int = 0
    """seed of the shuffled controls"""
    skip_unreadable: bool = False
    """leave out images that cannot be decoded; default: name them and stop before any work"""
    dtype: PredictDtype = "auto"
    """number format of the frozen models. recipe: as in training. auto: the same, except fp32 in
    place of bf16 on a device without bf16 instructions"""
    prompt_template: PromptTemplate = "recipe"
    """use of the language model's chat template. chat: with it. plain: without it. recipe: as in
    training"""


@dataclass(frozen=True)
class EvaluateArgs:
    """Checkpoint, data and tasks."""

    checkpoint: Path
    """folder of a run (its latest checkpoint is taken) or of one checkpoint"""
    data: Path
    """folder with images/ and annotations/"""
    tasks: tuple[Task, ...]
    """caption, vqa and gqa need a stage-2 checkpoint, retrieval one of stage 1"""
    split: str = "test"
    """split of the data, which is a part of the file names"""
    out: Path | None = None
    """folder for results.json and the predictions; default: nothing is written"""
    limit: int | None = None
    """number of images (caption, retrieval) or questions (vqa, gqa) at most; default: all"""
    table: int | None = None
    """table of the paper (2 to 5) whose row is set beside our results, here and in the report"""
    row: str | None = None
    """row of that table, such as vit-g-flant5-xl"""
    device: str = "cpu"
    """torch's name of the device: cpu or cuda"""
    batch_size: int = 64
    """number of images or texts in one forward pass"""
    answering: Annotated[AnswerArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=AnswerArgs)
    retrieval: Annotated[RetrievalArgs, tyro.conf.OmitArgPrefixes] = field(
        default_factory=RetrievalArgs
    )
    further: Annotated[FurtherArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=FurtherArgs)

    def __post_init__(self) -> None:
        limits = {
            "limit": self.limit,
            "retrieval-images": self.retrieval.images,
            "retrieval-captions": self.retrieval.captions,
        }
        for name, value in limits.items():
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}: give at least 1")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out {self.out} is a file; name a folder")
        if not self.tasks:
            raise ValueError("--tasks: name at least one of caption, vqa, gqa, retrieval")
        if (self.table is None) != (self.row is None):
            raise ValueError("--table and --row belong together; give both or neither")
        if self.table is not None and self.row is not None:
            tables.find_row(self.table, self.row)


def main() -> int:
    args = tyro.cli(EvaluateArgs, description=__doc__)
    results = evaluate(args)
    print_results(results)
    compared = beside_paper(results)
    if compared is not None:
        print(tables.render_text(*compared))
    return 0


def evaluate(args: EvaluateArgs, model: Writer | Embedder | None = None) -> dict[str, Any]:
    """Run the tasks; returns the content of ``results.json``.

    All data are read and all images decoded once before a model is shown the first of them.
    ``results.json`` is written anew after each task.

    Args:
        model: the checkpoint, if the caller has loaded it already.

    Returns:
        The scores of each task under its name (``evaluate_captions``, ``evaluate_questions``,
        ``evaluate_retrieval``), with ``notes``, a sentence each; ``seconds`` of each task;
        checkpoint, recipe, data and split; ``table`` and ``row``, and ``candidates`` (file and
        score) where they were asked for.

    Raises:
        ValueError, FileNotFoundError: a checkpoint or data file is missing or not what it must be,
            or an image cannot be decoded.
    """
    if not args.data.is_dir():
        raise FileNotFoundError(f"--data {args.data}: no such folder")
    data = {task: _read(args, task) for task in args.tasks}
    model = model or load(
        args.checkpoint,
        args.device,
        args.further.dtype,
        args.batch_size,
        args.further.prompt_template,
    )
    _check_stage(args, model)
    images: dict[str, list[Path]] = {task: of_task.paths() for task, of_task in data.items()}
    broken = find_unreadable(images, args.further.skip_unreadable)
    results: dict[str, Any] = {
        "checkpoint": str(args.checkpoint),
        "step": model.trained.step,
        "recipe": model.trained.recipe.name,
        "text": model.trained.recipe.text,
        "data": str(args.data.resolve()),
        "split": args.split,
        "seconds": {},
    }
    if args.table is not None:
        results |= {"table": args.table, "row": args.row}
    if args.answering.candidates is not None:
        chosen = {"file": str(args.answering.candidates), "score": args.answering.candidate_score}
        results["candidates"] = chosen
    out = Outputs(args.out)
    for task in args.tasks:
        started = time.monotonic()
        scores = _run(args, model, task, data[task].without(broken), out)
        left_out = {path: broken[path] for path in images[task] if path in broken}
        if left_out:
            few = f"{len(left_out)} of {len(images[task])} images"
            told = f"{few} cannot be decoded and were left out: {name_some(left_out)}"
            scores["notes"] = [told, *scores["notes"]]
        results[task] = scores
        results["seconds"][task] = round(time.monotonic() - started, 1)
        out.write("results.json", results, indent=1)
    return results


def _read(args: EvaluateArgs, task: Task) -> Data:
    if task == "caption":
        return read_captioning(args.data, args.split, args.limit)
    if task == "retrieval":
        return read_retrieval(args.data, args.split, args.retrieval.images or args.limit)
    asked = read_asking(args.data, args.split, task, args.limit, args.further.controls)
    return replace(asked, candidates=args.answering.read())


def _check_stage(args: EvaluateArgs, model: Writer | Embedder) -> None:
    for task in args.tasks:
        needed = "stage1" if task == "retrieval" else "stage2"
        if model.kind != needed:
            raise ValueError(
                f"--tasks {task} needs a {needed} checkpoint; {args.checkpoint} is {model.kind}"
            )


def _run(
    args: EvaluateArgs, model: Writer | Embedder, task: Task, data: Data, out: Outputs
) -> dict[str, Any]:
    """The scores of one task."""
    further, retrieval = args.further, args.retrieval
    if isinstance(data, Asked):
        assert isinstance(model, Writer)  # by _check_stage
        return evaluate_questions(
            data,
            _answerer(model, data.candidates, args.answering.candidate_score),
            out,
            task="gqa" if task == "gqa" else "vqa",
            split=args.split,
            batch_size=args.batch_size,
            controls=further.controls,
            seed=further.seed,
        )
    if isinstance(model, Writer):
        return evaluate_captions(
            data.items,
            _captioner(model, further.caption_prompt),
            out,
            split=args.split,
            batch_size=args.batch_size,
            seed=further.seed,
        )
    return evaluate_retrieval(
        data.items,
        _embedders(model, retrieval.rerank),
        out,
        split=args.split,
        k=retrieval.k,
        captions_per_image=retrieval.captions,
        batch_size=args.batch_size,
    )


def _captioner(model: Writer, prompt: str | None) -> Captioner:
    prompt = model.caption_prompt if prompt is None else prompt
    return Captioner(model.encode, partial(model.speak, settings=CAPTION), prompt, _remedy(model))


def _answerer(model: Writer, candidates: Sequence[str], length: Length) -> Answerer:
    """The model that writes its answers or, where there are candidates, chooses among them."""
    if not candidates:
        read = partial(model.speak, settings=VQA)
        return Answerer(model.encode, model.respond, read, model.vqa_prompt, _remedy(model))

    def choose_behind(encoded: Tensor | None, prompts: Sequence[str]) -> list[str]:
        return [found.best(length) for found in model.weigh(encoded, prompts, candidates)]

    choose = partial(model.choose, candidates=candidates, length=length)
    return Answerer(model.encode, choose, choose_behind, model.vqa_prompt)


def _remedy(model: Writer) -> str:
    """Advice for a user whose texts come out empty."""
    if model.has_unused_chat_template:
        return "ask it through its chat template: --prompt-template chat"
    return "look at the prompt, and at how the checkpoint was trained"


def _embedders(model: Embedder, rerank: Rerank) -> Embedders:
    def match(tokens_BPD: Tensor, rows_R: Tensor, texts: Sequence[str]) -> Tensor:
        return itm_scores(model.match_tokens(tokens_BPD, rows_R, texts), rerank)

    weight = 1 / model.temperature if rerank == "odds" else 1.0
    return Embedders(model.embed_images, model.text_embeds, match, weight, rerank)


if __name__ == "__main__":
    run(main)
