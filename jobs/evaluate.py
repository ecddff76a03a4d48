"""Score a checkpoint: captioning and zero-shot VQA (stage 2), retrieval (stage 1).

    python jobs/evaluate.py --checkpoint RUN --data DIR --tasks caption vqa --split test --out OUT
    python jobs/evaluate.py --checkpoint RUN --data DIR --tasks vqa --table 2 --row vit-g-flant5-xl

DIR holds ``images/SPLIT`` and ``annotations/`` with ``captions_SPLIT.json`` (COCO), or
``dataset_karpathy.json``; ``vqa_SPLIT_questions.json`` and ``vqa_SPLIT_annotations.json`` (VQAv2);
``gqa_SPLIT_questions.json``. OUT gets ``results.json`` and the predictions in the formats that the
official servers take. A test set without references is predicted and not scored. All scores are
fractions between 0 and 1, and CIDEr 1.0 is what papers print as 100. See docs/evaluation.md.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

import tyro
from torch import Tensor

from evaluation import tables
from evaluation.benchmarks.folder import (
    Asked,
    Captioned,
    read_asking,
    read_captioning,
    read_retrieval,
)
from evaluation.benchmarks.image_files import name_some, unreadable
from evaluation.benchmarks.readers import CaptionedImage, QuestionSet
from evaluation.caption import caption_images, empty_texts, reference_notes, score_captions
from evaluation.outputs import Outputs
from evaluation.results import paper_metrics, print_results
from evaluation.retrieval import Embedders, examples, retrieve, size_notes
from evaluation.scores.metrics import vqa_accuracy
from evaluation.vqa import (
    Metric,
    answer_from_text,
    answer_questions,
    gqa_accuracy,
    score_answers,
    scoring_notes,
)
from jobs.cli import run
from jobs.predict import CAPTION, VQA, PredictDtype, Predictor, load

Task = Literal["caption", "vqa", "gqa", "retrieval"]
Data = Captioned | Asked


@dataclass(frozen=True)
class EvaluateArgs:
    """What to score, on what, and how much of it."""

    checkpoint: Path
    """a run's folder (its latest checkpoint) or one checkpoint's folder"""
    data: Path
    """folder with images/ and annotations/"""
    tasks: tuple[Task, ...]
    """caption, vqa and gqa need a stage-2 checkpoint, retrieval one of stage 1"""
    split: str = "test"
    out: Path | None = None
    """folder for results.json and the predictions; nothing is written without it"""
    limit: int | None = None
    """at most so many images (captioning, retrieval) and questions (VQA, GQA)"""
    retrieval_images: int | None = None
    """images that are each other's candidates; like --limit, for retrieval alone"""
    retrieval_captions: int | None = None
    """captions an image in retrieval; all of them if not given"""
    k: int = 128
    """candidates that ITM re-ranks (paper, section 4.4)"""
    rerank: Literal["reference", "odds"] = "reference"
    """score of a candidate: reference adds ITM's logit of "match" to the ITC similarity, as LAVIS
    does; odds adds ITM's log-odds to the similarity over the temperature, so that both count as
    they do in their losses"""
    caption_prompt: str | None = None
    """what captions continue; "a photo of" for finetuned models"""
    controls: bool = True
    """also score VQA with images shuffled, and the language model reading a true caption"""
    seed: int = 0
    """of the shuffled controls"""
    skip_unreadable: bool = False
    """leave out images that cannot be decoded; without it they are named and nothing is begun"""
    device: str = "cpu"
    dtype: PredictDtype = "auto"
    """number format of the frozen models: recipe is the one they were trained with, and so is auto,
    but fp32 in place of bf16 where the device multiplies that in software"""
    prompt_template: Literal["recipe", "plain", "chat"] = "recipe"
    """chat: write prompts with the language model's chat template; recipe: as in training"""
    batch_size: int = 64
    table: int | None = None
    """a table of the paper (2 to 5): print its row beside ours"""
    row: str | None = None
    """a row of that table, such as vit-g-flant5-xl"""

    def __post_init__(self) -> None:
        for name in ("limit", "retrieval_images", "retrieval_captions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: give at least 1")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out {self.out} is a file; name a folder")
        if not self.tasks:
            raise ValueError("--tasks: name at least one of caption, vqa, gqa, retrieval")
        if (self.table is None) != (self.row is None):
            raise ValueError("--table and --row belong together; give both or neither")
        if self.table is not None and self.row is not None:
            tables.find_row(self.table, self.row)


def evaluate(args: EvaluateArgs, model: Predictor | None = None) -> dict[str, Any]:
    """Run the tasks; returns what ``results.json`` holds.

    ``caption``: cider, bleu1 … bleu4, meteor, rouge_l, shuffled_cider. ``vqa`` and ``gqa``:
    accuracy, blind, text_only, and each ``by_question_type``. ``retrieval``: tr_r1 … ir_r10, itc,
    chance. ``seconds``: per task.

    All data are read and all images decoded once before the first of them is shown to a model, and
    ``results.json`` is written anew after each task. ``notes`` of a task are what a reader must
    know, a sentence each.

    Args:
        model: the checkpoint, where the caller has loaded it already.

    Raises:
        ValueError, FileNotFoundError: a checkpoint or data file is missing or not what it must be,
            or an image cannot be decoded.
    """
    if not args.data.is_dir():
        raise FileNotFoundError(f"--data {args.data}: no such folder")
    data = {task: _read(args, task) for task in args.tasks}
    model = model or load(
        args.checkpoint, args.device, args.dtype, args.batch_size, args.prompt_template
    )
    _check_stage(args, model)
    broken = _check_images(args, data)
    results: dict[str, Any] = {
        "checkpoint": str(args.checkpoint),
        "step": model.trained.step,
        "recipe": model.trained.recipe.name,
        "text": model.trained.recipe.text,
        "data": str(args.data.resolve()),
        "split": args.split,
        "seconds": {},
    }
    out = Outputs(args.out)
    for task in args.tasks:
        started = time.monotonic()
        scores = _run(args, model, task, data[task].without(broken), out)
        paths = data[task].paths()
        mine = {path: broken[path] for path in paths if path in broken}
        if mine:
            few = f"{len(mine)} of {len(paths)} images"
            told = f"{few} cannot be decoded and were left out: {name_some(mine)}"
            scores["notes"] = [told, *scores["notes"]]
        results[task] = scores
        results["seconds"][task] = round(time.monotonic() - started, 1)
        out.write("results.json", results, indent=1)
    return results


def _read(args: EvaluateArgs, task: Task) -> Data:
    if task == "caption":
        return read_captioning(args.data, args.split, args.limit)
    if task == "retrieval":
        return read_retrieval(args.data, args.split, args.retrieval_images or args.limit)
    return read_asking(args.data, args.split, task, args.limit, args.controls)


def _check_images(args: EvaluateArgs, data: Mapping[Task, Data]) -> dict[Path, str]:
    """The images that are left out because they cannot be decoded, with their reasons."""
    paths = {path for one in data.values() for path in one.paths()}
    broken = unreadable(sorted(paths))
    if broken and not args.skip_unreadable:
        raise ValueError(
            f"{len(broken)} of {len(paths)} images cannot be decoded: {name_some(broken)}; repair "
            "them, or leave them out with --skip-unreadable"
        )
    for task, one in data.items():
        if broken.keys() >= set(one.paths()):
            raise ValueError(f"--tasks {task}: no image can be decoded: {name_some(broken)}")
    return broken


def _run(
    args: EvaluateArgs, model: Predictor, task: Task, data: Data, out: Outputs
) -> dict[str, Any]:
    if isinstance(data, Asked):
        return evaluate_questions(args, model, data, out, "gqa" if task == "gqa" else "vqa")
    evaluate_task = evaluate_caption if task == "caption" else evaluate_retrieval
    return evaluate_task(args, model, list(data.items), out)


def evaluate_caption(
    args: EvaluateArgs, model: Predictor, items: list[CaptionedImage], out: Outputs
) -> dict[str, Any]:
    """Caption the images; writes ``captions_SPLIT_results.json`` in COCO's format."""
    name = f"captions_{args.split}_results.json"
    with out.keeping(name) as keep:
        predictions = caption_images(
            items,
            model.encode,
            partial(model.speak, settings=CAPTION),
            prompt=model.caption_prompt if args.caption_prompt is None else args.caption_prompt,
            batch_size=args.batch_size,
            keep=keep,
        )
        out.write(name, predictions)
    scored = [item for item in items if item.references]
    empty, warnings = _empty(model, [said["caption"] for said in predictions])
    notes = [*warnings, *reference_notes(items)]
    if not scored:
        return {"count": 0, "empty": empty, "notes": notes}
    scores = score_captions(scored, predictions, args.seed)
    out.write(f"captions_{args.split}_scores.json", scores.pop("cider_per_image"))
    if "shuffled" in scores:
        scores["shuffled_cider"] = scores.pop("shuffled")["cider"]
    return scores | {"empty": empty, "notes": [*notes, *scores["notes"]]}


def evaluate_questions(
    args: EvaluateArgs, model: Predictor, asked: Asked, out: Outputs, task: Literal["vqa", "gqa"]
) -> dict[str, Any]:
    """Answer the questions; writes ``TASK_SPLIT_results.json`` in VQAv2's format."""
    metric: Metric = vqa_accuracy if task == "vqa" else gqa_accuracy
    answered = asked.questions.answered()
    predictions = _answer(args, model, asked.questions, out, task)
    empty, warnings = _empty(model, [said["answer"] for said in predictions])
    notes = [*warnings, *scoring_notes(asked.questions, metric)]
    if not answered.questions:
        return {"count": 0, "empty": empty, "notes": notes}
    scores = score_answers(answered, predictions, metric)
    if args.controls and len(answered.images) > 1:
        blind = _answer(args, model, answered.shuffled(args.seed), out, f"{task}_blind")
        _add_control(scores, "blind", score_answers(answered, blind, metric))
    if args.controls and asked.contexts is not None:
        name = f"{task}_{args.split}_text_only_results.json"
        with out.keeping(name) as keep:
            read = answer_from_text(
                answered,
                asked.contexts,
                partial(model.speak, settings=VQA),
                model.vqa_prompt,
                batch_size=args.batch_size,
                keep=keep,
            )
            out.write(name, read)
        _add_control(scores, "text_only", score_answers(answered, read, metric))
    return scores | {"empty": empty, "notes": notes}


def _empty(model: Predictor, texts: list[str]) -> tuple[float, list[str]]:
    """The share of empty texts, and a note, told at once, where most of them are."""
    remedy = "look at the prompt, and at how the checkpoint was trained"
    if model.has_unused_chat_template:
        remedy = "ask it through its chat template: --prompt-template chat"
    share, warning = empty_texts(texts, remedy)
    if not warning:
        return share, []
    print(f"warning: {warning}", file=sys.stderr, flush=True)
    return share, [warning]


def _answer(
    args: EvaluateArgs, model: Predictor, questions: QuestionSet, out: Outputs, title: str
) -> list[dict[str, Any]]:
    task, _, control = title.partition("_")
    name = "_".join(filter(None, (task, args.split, control, "results.json")))
    with out.keeping(name) as keep:
        predictions = answer_questions(
            questions,
            model.encode,
            model.respond,
            batch_size=args.batch_size,
            title=title.replace("_", " "),
            keep=keep,
        )
        out.write(name, predictions)
    return predictions


def evaluate_retrieval(
    args: EvaluateArgs, model: Predictor, items: list[CaptionedImage], out: Outputs
) -> dict[str, Any]:
    """Retrieve among the images; writes ``retrieval_SPLIT_examples.json``."""

    odds = args.rerank == "odds"

    def match(tokens_BPD: Tensor, rows_R: Tensor, texts: Sequence[str]) -> Tensor:
        logits_RC = model.match_tokens(tokens_BPD, rows_R, texts)
        # The reference takes the logit of "match" alone, and not its lead over "no match".
        return logits_RC[:, 1] - logits_RC[:, 0] if odds else logits_RC[:, 1]

    embed = Embedders(model.embed_images, model.text_embeds, match)
    scores, rankings = retrieve(
        items,
        embed,
        k=args.k,
        captions_per_image=args.retrieval_captions,
        similarity_weight=1 / model.temperature if odds else 1.0,
        batch_size=args.batch_size,
    )
    out.write(f"retrieval_{args.split}_examples.json", examples(items, rankings))
    return scores | {"rerank": args.rerank, "notes": size_notes(items)}


def _add_control(scores: dict[str, Any], name: str, control: dict[str, Any]) -> None:
    scores[name] = control["accuracy"]
    if "exact_match" in control:
        scores[f"exact_match_{name}"] = control["exact_match"]
    for key, value in control.items():
        if key.startswith("by_"):
            scores[f"{key}_{name}"] = value


def _check_stage(args: EvaluateArgs, model: Predictor) -> None:
    for task in args.tasks:
        needed = "stage1" if task == "retrieval" else "stage2"
        if model.kind != needed:
            raise ValueError(
                f"--tasks {task} needs a {needed} checkpoint; {args.checkpoint} is {model.kind}"
            )


def main() -> int:
    args = tyro.cli(EvaluateArgs, description=__doc__)
    results = evaluate(args)
    print_results(results)
    if args.table is not None and args.row is not None:
        row = tables.find_row(args.table, args.row)
        lines = tables.compare(row, paper_metrics(args.table, results))
        print(tables.render_text(row, lines))
    return 0


if __name__ == "__main__":
    run(main)
