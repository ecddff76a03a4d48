"""Score a checkpoint: captioning and zero-shot VQA (stage 2), retrieval (stage 1).

    python jobs/evaluate.py --checkpoint RUN --data DIR --tasks caption vqa --split test --out OUT
    python jobs/evaluate.py --checkpoint RUN --data DIR --tasks vqa --table 2 --row vit-g-flant5-xl
    python jobs/evaluate.py --checkpoint RUN --data DIR --tasks vqa --answers rank --candidates FILE

    python jobs/evaluate.py --checkpoint RUN --data DIR --tasks okvqa textvqa nocaps --out OUT

The tasks caption, vqa, gqa and retrieval read common formats: DIR holds the folders images/SPLIT
and annotations. Files in annotations are captions_SPLIT.json (COCO) or dataset_karpathy.json,
vqa_SPLIT_questions.json and vqa_SPLIT_annotations.json (VQAv2), and gqa_SPLIT_questions.json. Every
other task is a benchmark, whose files lie in DIR/NAME as its authors publish them. OUT receives
results.json and the predictions in the formats that the official servers take. A test set without
references is predicted and not scored. All scores are fractions between 0 and 1; CIDEr 1.0 is
printed as 100 in papers. See docs/evaluation.md.
"""

import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, get_args

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

import tyro

from evaluation import tables
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
from evaluation.candidates import read_candidates
from evaluation.caption import evaluate_captions
from evaluation.choice import choosing_of, evaluate_choices
from evaluation.images.unreadable import find_unreadable, name_some
from evaluation.outputs import Outputs
from evaluation.results import beside_paper, print_results
from evaluation.retrieval import Rerank, evaluate_retrieval
from evaluation.scores.answers import GqaVariant, VqaVariant
from evaluation.scoring import scoring_of
from evaluation.vqa import evaluate_questions
from jobs.cli import run
from jobs.predict import Embedder, PredictDtype, PromptTemplate, Writer, load
from jobs.prediction.adapters import answerer, captioner, embedders
from modeling.language.ranking import Length

Task = Literal[
    "caption", "vqa", "gqa", "retrieval",
    "coco", "nocaps", "flickr30k", "coco_retrieval", "flickr30k_retrieval",
    "vqav2", "okvqa", "aokvqa", "vizwiz", "textvqa",
    "aokvqa_choice", "scienceqa", "iconqa", "vsr", "hatefulmemes", "visdial",
]  # fmt: skip
Data = Captioned | Asked
_SPLIT = "test"


class _Common(TypedDict):
    """Arguments that every task takes."""

    split: str
    batch_size: int


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
    """Options of the tasks that ask questions."""

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
class ScoringArgs:
    """Options of the scores of answers, and of benchmarks' prompts."""

    vqa_metric: VqaVariant | None = None
    """variant of VQA accuracy: what is normalised before answers are compared. official: both sides
    where annotators differ. lavis: the scorer of BLIP-2's numbers. always: both sides. Default:
    always for textvqa, official for all others"""
    gqa_metric: GqaVariant = "normalised"
    """comparison of GQA's answers. normalised: of their VQA normal forms. strict: of the strings"""
    lemmatise: Literal["spacy", "none"] = "spacy"
    """reduction of the answers to okvqa to lemmas before they are scored, as its references are"""
    prompts: Literal["model", "instruct"] = "model"
    """prompts of benchmarks. model: the checkpoint's own. instruct: InstructBLIP's for each, which
    for textvqa holds the words that OCR found"""


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
    """names of tasks; those of retrieval need a stage-1 checkpoint, all others one of stage 2"""
    split: str | None = None
    """split of the data, which is a part of the file names; default: test for caption, vqa, gqa and
    retrieval, for a benchmark the split that published numbers are of"""
    out: Path | None = None
    """folder for results.json and the predictions; default: nothing is written"""
    limit: int | None = None
    """number of images (caption, retrieval) or questions (vqa, gqa) at most; default: all"""
    table: str | None = None
    """published table whose row is set beside our results, here and in the report: 1 to 6 of the
    paper, instructblip.1, llava.4, llava.5, llava.7, llava1.5"""
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
    scoring: Annotated[ScoringArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=ScoringArgs)
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
            raise ValueError(f"--tasks: name at least one of {', '.join(get_args(Task))}")
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
        "split": args.split or _SPLIT,
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
        benchmark = _benchmark(args, task)
        if benchmark is not None:
            split = _split(args, benchmark)
            scores |= {"split": split, "prompts": args.scoring.prompts}
        left_out = {path: broken[path] for path in images[task] if path in broken}
        if left_out:
            few = f"{len(left_out)} of {len(images[task])} images"
            told = f"{few} cannot be decoded and were left out: {name_some(left_out)}"
            scores["notes"] = [told, *scores["notes"]]
        results[task] = scores
        results["seconds"][task] = round(time.monotonic() - started, 1)
        out.write("results.json", results, indent=1)
    return results


def _benchmark(args: EvaluateArgs, task: Task) -> Benchmark | None:
    """The benchmark whose authors' files a task reads; None: it reads a common format."""
    if task == "gqa" and not (args.data / "gqa").is_dir():
        return None
    return BENCHMARKS.get(task)


def _split(args: EvaluateArgs, benchmark: Benchmark | None) -> str:
    return args.split or (benchmark.splits[0] if benchmark else _SPLIT)


def _read(args: EvaluateArgs, task: Task) -> Data:
    benchmark = _benchmark(args, task)
    split = _split(args, benchmark)
    if benchmark is not None:
        retrieved = benchmark.way == "retrieve"
        limit = args.retrieval.images or args.limit if retrieved else args.limit
        data = benchmark.load(args.data, split).first(limit)
        if isinstance(data, Captioned):
            require_captions(data, split) if retrieved else require_java(data)
        return data
    if task == "caption":
        return read_captioning(args.data, split, args.limit)
    if task == "retrieval":
        return read_retrieval(args.data, split, args.retrieval.images or args.limit)
    family: Literal["vqa", "gqa"] = "gqa" if task == "gqa" else "vqa"
    asked = read_asking(args.data, split, family, args.limit, args.further.controls)
    return replace(asked, candidates=args.answering.read())


def _check_stage(args: EvaluateArgs, model: Writer | Embedder) -> None:
    for task in args.tasks:
        needed = "stage1" if task.endswith("retrieval") else "stage2"
        if model.kind != needed:
            raise ValueError(
                f"--tasks {task} needs a {needed} checkpoint; {args.checkpoint} is {model.kind}"
            )


def _run(
    args: EvaluateArgs, model: Writer | Embedder, task: Task, data: Data, out: Outputs
) -> dict[str, Any]:
    """The scores of one task."""
    retrieval, benchmark = args.retrieval, _benchmark(args, task)
    common: _Common = {"split": _split(args, benchmark), "batch_size": args.batch_size}
    if isinstance(data, Asked):
        assert isinstance(model, Writer)  # by _check_stage
        if benchmark is not None and benchmark.way == "choose":
            return evaluate_choices(
                data.questions,
                model.rank,
                choosing_of(benchmark, args.answering.candidate_score),
                out,
                task=task,
                controls=args.further.controls,
                seed=args.further.seed,
                **common,
            )
        return evaluate_questions(
            data,
            answerer(
                model,
                benchmark if args.scoring.prompts == "instruct" else None,
                data.candidates,
                args.answering.candidate_score,
            ),
            out,
            task=task,
            scoring=scoring_of(
                benchmark,
                "gqa" if task == "gqa" else "vqa",
                vqa=args.scoring.vqa_metric,
                gqa=args.scoring.gqa_metric,
                lemmatise=args.scoring.lemmatise == "spacy",
            ),
            controls=args.further.controls,
            seed=args.further.seed,
            **common,
        )
    if isinstance(model, Writer):
        instructed = args.scoring.prompts == "instruct"
        captions = captioner(model, args.further.caption_prompt, instructed)
        name = "captions" if task == "caption" else task
        seed = args.further.seed
        return evaluate_captions(data.items, captions, out, task=name, seed=seed, **common)
    return evaluate_retrieval(
        data.items,
        embedders(model, retrieval.rerank),
        out,
        task=task,
        k=retrieval.k,
        captions_per_image=retrieval.captions,
        **common,
    )


if __name__ == "__main__":
    run(main)
