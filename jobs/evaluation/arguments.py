"""The options of ``jobs/evaluate.py``."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from evaluation import tables
from evaluation.benchmarks.catalogue import Benchmark
from evaluation.candidates import read_candidates
from evaluation.scores.answers import GqaVariant, VqaVariant
from evaluation.tasks.judged import JudgeArgs
from evaluation.tasks.retrieval import Rerank
from jobs.predict import PredictDtype, PromptTemplate
from modeling.language.ranking import Length

Task = Literal[
    "caption", "vqa", "gqa", "retrieval",
    "coco", "nocaps", "flickr30k", "coco_retrieval", "flickr30k_retrieval",
    "vqav2", "okvqa", "aokvqa", "vizwiz", "textvqa", "msvdqa", "msrvttqa", "ivqa",
    "aokvqa_choice", "scienceqa", "iconqa", "vsr", "hatefulmemes", "visdial",
    "llava_bench", "llava_bench_coco",
]  # fmt: skip


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

    answers: Literal["generate", "rank"] | None = None
    """origin of an answer. generate: the language model writes it. rank: it is the likeliest of the
    candidates. Default: rank for msvdqa and msrvttqa, among the answers of their training split;
    generate for all others"""
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

    def read(self, benchmark: Benchmark | None, data: Path) -> tuple[str, ...]:
        """The candidates; none where answers are generated."""
        if self.candidates is not None:
            return tuple(read_candidates(self.candidates, self.most_frequent))
        if benchmark is None or self.answers == "generate":
            return ()
        return benchmark.own_candidates(data)


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
class WorkArgs:
    """Options of how the work is shared and kept."""

    workers: int = 0
    """number of worker processes, each of which loads the checkpoint; 0: no others, this process
    answers; with --address 0 means one worker for each GPU (or CPU, where there are no GPUs)"""
    address: str | None = None
    """Ray cluster whose nodes run the workers: auto, HOST:PORT or ray://...; default: that of
    RAY_ADDRESS, which `ray job submit` sets, else this machine"""
    threads: int = 0
    """number of CPU threads of a worker, on which the last bits of scores depend; 0: one for each
    of several workers, all cores for this process alone"""
    chunk: int = 256
    """number of questions or images whose answers are kept together in one file"""
    score_only: bool = False
    """score the answers that OUT has, without the checkpoint's models"""
    compare: tuple[Path, Path] | None = None
    """two --out folders (or s3:// URLs) to compare in pairs, question by question, in place of a
    checkpoint; --out receives comparison.json"""
    predictions: Path | None = None
    """file of predictions to score in place of a checkpoint, for one task: what VQAv2's and COCO's
    servers take, or TASK_SPLIT_results.json of another evaluation"""
    replace: bool = False
    """remove the answers to these tasks that OUT has, and answer again"""

    def __post_init__(self) -> None:
        for name, least in (("workers", 0), ("threads", 0), ("chunk", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: give at least {least}")
        if self.score_only and self.replace:
            raise ValueError("--score-only and --replace exclude each other; give one of them")


@dataclass(frozen=True)
class WatchArgs:
    """Options of scheduled evaluation."""

    watch: Path | None = None
    """folder or s3:// URL of a training run, in place of --checkpoint and --out: each of its
    checkpoints is evaluated by --suite when it appears, into RUN/evaluations"""
    every: str = "10m"
    """time between two looks at the run, such as 30s, 10m or 6h"""
    stride: int = 1
    """only checkpoints of steps that this number divides are evaluated"""
    once: bool = False
    """evaluate what there is and end, as for cron"""

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"--stride {self.stride}: give at least 1")
        _ = self.seconds

    @property
    def seconds(self) -> float:
        """The time between two looks in seconds.

        Raises:
            ValueError: it is no duration, or 0.
        """
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", self.every)
        if not found or not float(found[1]):
            raise ValueError(f"--every {self.every!r}: give a duration such as 30s, 10m, 6h or 1d")
        return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


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

    checkpoint: Path | None = None
    """folder or s3:// URL of a run (its latest checkpoint is taken) or of one checkpoint"""
    data: Path = Path("data")
    """folder or s3:// URL with images/ and annotations/, or with a folder for each benchmark"""
    tasks: tuple[Task, ...] = ()
    """names of tasks; those of retrieval need a stage-1 checkpoint, all others one of stage 2"""
    suite: str | None = None
    """suite of tasks in place of --tasks: paper, instruct, nightly, tinyworld, or a .toml file of
    your own; those of its tasks are run that the checkpoint and the data are for"""
    split: str | None = None
    """split of the data, which is a part of the file names; default: test for caption, vqa, gqa and
    retrieval, for a benchmark the split that published numbers are of"""
    out: Path | None = None
    """folder or s3:// URL for the answers, results.json and the predictions; an evaluation that was
    ended goes on from there; default: nothing is written"""
    limit: int | None = None
    """number of images (caption, retrieval) or questions (vqa, gqa) at most; default: all"""
    table: str | None = None
    """published table whose row is set beside our results, here and in the report: 1 to 6 of the
    paper, instructblip.1, llava.4, llava.5, llava.7, llava1.5"""
    row: str | None = None
    """row of that table, such as vit-g-flant5-xl"""
    device: str = "auto"
    """torch's name of the device: cpu or cuda; auto: cuda where there is a GPU"""
    batch_size: int = 64
    """number of images or texts in one forward pass"""
    answering: Annotated[AnswerArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=AnswerArgs)
    retrieval: Annotated[RetrievalArgs, tyro.conf.OmitArgPrefixes] = field(
        default_factory=RetrievalArgs
    )
    scoring: Annotated[ScoringArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=ScoringArgs)
    judging: Annotated[JudgeArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=JudgeArgs)
    work: Annotated[WorkArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=WorkArgs)
    watching: Annotated[WatchArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=WatchArgs)
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
        kept = self.out is not None or self.watching.watch is not None
        if not kept and (self.work.score_only or self.work.address):
            raise ValueError("--score-only and --address need --out, where the answers are kept")
        sources = (
            *(self.checkpoint, self.watching.watch),
            *(self.work.predictions, self.work.compare),
        )
        if sum(source is not None for source in sources) != 1:
            raise ValueError("give one of --checkpoint, --watch, --predictions and --compare")
        if self.work.compare is not None:
            return
        if self.work.predictions is not None and len(self.tasks) != 1:
            raise ValueError("--predictions are those of one task; name it with --tasks")
        if self.watching.watch is not None and (self.suite is None or self.out is not None):
            raise ValueError("--watch needs --suite and takes no --out: results are in the run")
        if bool(self.tasks) == (self.suite is not None):
            known = ", ".join(get_args(Task))
            raise ValueError(f"give --tasks or --suite; --tasks takes some of {known}")
        if (self.table is None) != (self.row is None):
            raise ValueError("--table and --row belong together; give both or neither")
        if self.table is not None and self.row is not None:
            tables.find_row(self.table, self.row)
