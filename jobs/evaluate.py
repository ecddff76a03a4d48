"""Score a checkpoint: captioning and zero-shot VQA (stage 2), retrieval (stage 1).

    python jobs/evaluate.py --checkpoint RUN --data DIR --tasks caption vqa --split test --out OUT
    python jobs/evaluate.py --checkpoint RUN --data DIR --tasks vqa --table 2 --row vit-g-flant5-xl

DIR holds ``images/SPLIT`` and ``annotations/`` with ``captions_SPLIT.json`` (COCO), or
``dataset_karpathy.json``; ``vqa_SPLIT_questions.json`` and ``vqa_SPLIT_annotations.json`` (VQAv2);
``gqa_SPLIT_questions.json``. OUT gets ``results.json`` and the predictions in the formats that the
official servers take. All scores are fractions between 0 and 1, and CIDEr 1.0 is what papers print
as 100.
"""

import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro

from evaluation import tables
from evaluation.caption import caption_images, empty_texts, score_captions
from evaluation.data import (
    CaptionedImage,
    ImageId,
    QuestionSet,
    read_coco_captions,
    read_gqa,
    read_karpathy,
    read_vqa,
)
from evaluation.metrics import vqa_accuracy
from evaluation.retrieval import Embedders, Rankings, retrieve
from evaluation.vqa import (
    Metric,
    answer_from_text,
    answer_questions,
    gqa_accuracy,
    score_answers,
)
from jobs.cli import run
from jobs.predict import CAPTION, VQA, Predictor, load

Task = Literal["caption", "vqa", "gqa", "retrieval"]
# The paper's metric that a task's score stands for; which one of a table depends on the data given.
_PAPER_METRIC = {(2, "vqa"): "vqav2.val", (2, "gqa"): "gqa.test-dev", (4, "vqa"): "vqav2.test-dev"}
_CAPTION_METRICS = {"coco.bleu4": "bleu4", "coco.cider": "cider"}


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
    caption_prompt: str | None = None
    """what captions continue; "a photo of" for finetuned models"""
    controls: bool = True
    """also score VQA with images shuffled, and the language model reading a true caption"""
    seed: int = 0
    """of the shuffled controls"""
    device: str = "cpu"
    dtype: Literal["recipe", "bf16", "fp32"] = "recipe"
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

    Args:
        model: the checkpoint, where the caller has loaded it already.

    Raises:
        ValueError, FileNotFoundError: a checkpoint or data file is missing or not what it must be.
    """
    if not args.data.is_dir():
        raise FileNotFoundError(f"--data {args.data}: no such folder")
    model = model or load(
        args.checkpoint, args.device, args.dtype, args.batch_size, args.prompt_template
    )
    _check_stage(args, model)
    runners = {
        "caption": evaluate_caption,
        "vqa": partial(evaluate_questions, task="vqa"),
        "gqa": partial(evaluate_questions, task="gqa"),
        "retrieval": evaluate_retrieval,
    }
    results: dict[str, Any] = {
        "checkpoint": str(args.checkpoint),
        "step": model.trained.step,
        "recipe": model.trained.recipe.name,
        "data": str(args.data.resolve()),
        "split": args.split,
        "seconds": {},
    }
    for task in args.tasks:
        started = time.monotonic()
        results[task] = runners[task](args, model)  # type: ignore[operator]
        results["seconds"][task] = round(time.monotonic() - started, 1)
    _write(args, "results.json", results)
    return results


def evaluate_caption(args: EvaluateArgs, model: Predictor) -> dict[str, Any]:
    """Caption the split's images; writes ``captions_SPLIT_results.json`` in COCO's format."""
    items = read_captions(args.data, args.split)[: args.limit]
    predictions = caption_images(
        items,
        model.encode,
        partial(model.speak, settings=CAPTION),
        prompt=model.caption_prompt if args.caption_prompt is None else args.caption_prompt,
        batch_size=args.batch_size,
    )
    _write(args, f"captions_{args.split}_results.json", predictions)
    scores = score_captions(items, predictions, args.seed)
    _tell_empty(scores, [said["caption"] for said in predictions], model)
    _write(args, f"captions_{args.split}_scores.json", scores.pop("cider_per_image"))
    if "shuffled" in scores:
        scores["shuffled_cider"] = scores.pop("shuffled")["cider"]
    return scores


def evaluate_questions(
    args: EvaluateArgs, model: Predictor, task: Literal["vqa", "gqa"] = "vqa"
) -> dict[str, Any]:
    """Answer the split's questions; writes ``TASK_SPLIT_results.json`` in VQAv2's format."""
    questions = read_questions(args.data, args.split, task).first(args.limit)
    metric: Metric = vqa_accuracy if task == "vqa" else gqa_accuracy
    ask = partial(
        answer_questions,
        encode=model.encode,
        respond=model.respond,
        batch_size=args.batch_size,
    )
    predictions = ask(questions, title=task)
    _write(args, f"{task}_{args.split}_results.json", predictions)
    scores = score_answers(questions, predictions, metric)
    _tell_empty(scores, [said["answer"] for said in predictions], model)
    if not args.controls:
        return scores
    if len(questions.images) > 1:
        blind = ask(questions.shuffled(args.seed), title=f"{task} blind")
        _write(args, f"{task}_{args.split}_blind_results.json", blind)
        _add_control(scores, "blind", score_answers(questions, blind, metric))
    contexts = true_captions(args.data, args.split, questions)
    if contexts is not None:
        generate = partial(model.speak, settings=VQA)
        read = answer_from_text(
            questions, contexts, generate, model.vqa_prompt, batch_size=args.batch_size
        )
        _write(args, f"{task}_{args.split}_text_only_results.json", read)
        _add_control(scores, "text_only", score_answers(questions, read, metric))
    return scores


def evaluate_retrieval(args: EvaluateArgs, model: Predictor) -> dict[str, Any]:
    """Retrieve among the split's images; writes ``retrieval_SPLIT_examples.json``."""
    limit = args.retrieval_images or args.limit
    items = read_captions(args.data, args.split)[:limit]
    embed = Embedders(model.embed_images, model.text_embeds, model.match_tokens)
    scores, rankings = retrieve(
        items,
        embed,
        k=args.k,
        captions_per_image=args.retrieval_captions,
        batch_size=args.batch_size,
    )
    _write(args, f"retrieval_{args.split}_examples.json", examples(items, rankings))
    return scores


def examples(
    items: list[CaptionedImage], rankings: Rankings, count: int = 8, best: int = 5
) -> dict[str, Any]:
    """The best texts of the first images and the best images of their first texts, for a report."""
    text_queries = [rankings.image_of_text.index(row) for row in range(min(count, len(items)))]
    return {
        "image_to_text": [
            {
                "image_id": items[row].image_id,
                "results": [
                    {
                        "text": rankings.texts[text],
                        "score": float(rankings.text_scores_IT[row, text]),
                        "right": rankings.image_of_text[text] == row,
                    }
                    for text in rankings.top_texts(row, best)
                ],
            }
            for row in range(min(count, len(items)))
        ],
        "text_to_image": [
            {
                "text": rankings.texts[text],
                "results": [
                    {
                        "image_id": items[row].image_id,
                        "score": float(rankings.image_scores_IT[row, text]),
                        "right": rankings.image_of_text[text] == row,
                    }
                    for row in rankings.top_images(text, best)
                ],
            }
            for text in text_queries
        ],
    }


def read_captions(data: Path, split: str) -> list[CaptionedImage]:
    """The split's captioned images, from COCO's format or else Karpathy's."""
    annotations, images = data / "annotations", data / "images" / split
    coco, karpathy = annotations / f"captions_{split}.json", annotations / "dataset_karpathy.json"
    if coco.is_file() or not karpathy.is_file():
        return read_coco_captions(coco, images)
    folder = images if images.is_dir() else data / "images"
    return read_karpathy(karpathy, folder, split)


def read_questions(data: Path, split: str, task: Literal["vqa", "gqa"]) -> QuestionSet:
    """The split's questions in VQAv2's or GQA's format."""
    annotations, images = data / "annotations", data / "images" / split
    if task == "gqa":
        return read_gqa(annotations / f"gqa_{split}_questions.json", images)
    answers = annotations / f"vqa_{split}_annotations.json"
    return read_vqa(annotations / f"vqa_{split}_questions.json", answers, images)


def true_captions(data: Path, split: str, questions: QuestionSet) -> dict[ImageId, str] | None:
    """For each image its first reference caption (TinyWorld's complete one); None without captions.

    Raises:
        ValueError: there are captions, but not for an image that is asked about.
    """
    if not (data / "annotations" / f"captions_{split}.json").is_file():
        return None
    # Joined by file: GQA writes the id 42 as "42", or with zeros in front.
    by_file = {item.path: item.captions for item in read_captions(data, split)}
    missing = [key for key, path in questions.images.items() if path not in by_file]
    if missing:
        raise ValueError(f"captions_{split}.json has no caption for image {missing[0]}")
    return {key: by_file[path][0] for key, path in questions.images.items()}


def _tell_empty(scores: dict[str, Any], texts: list[str], model: Predictor) -> None:
    """Put the share of empty texts beside the scores, and warn where most of them are."""
    remedy = "look at the prompt, and at how the checkpoint was trained"
    if model.has_unused_chat_template:
        remedy = "ask it through its chat template: --prompt-template chat"
    scores["empty"], warning = empty_texts(texts, remedy)
    if warning:
        scores["notes"] = [*scores.get("notes", []), warning]
        print(f"warning: {warning}", file=sys.stderr, flush=True)


def _add_control(scores: dict[str, Any], name: str, control: dict[str, Any]) -> None:
    scores[name] = control["accuracy"]
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


def _write(args: EvaluateArgs, name: str, content: Any) -> None:
    if args.out is None:
        return
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1 if name == "results.json" else None, ensure_ascii=False)
    (args.out / name).write_text(text + "\n", encoding="utf-8")


def paper_metrics(table: int, results: dict[str, Any]) -> dict[str, float]:
    """Our scores under the names of the paper's metrics, as far as they were measured."""
    ours: dict[str, float] = {}
    for task in ("vqa", "gqa"):
        if task in results and (table, task) in _PAPER_METRIC:
            ours[_PAPER_METRIC[table, task]] = results[task]["accuracy"]
    if table == 3 and "caption" in results:
        domains = results["caption"].get("domains")
        if domains:
            short = {name: name.removesuffix("-domain") for name in domains}
            ours = {f"nocaps.{short[name]}.cider": domains[name]["cider"] for name in domains}
            ours["nocaps.overall.cider"] = results["caption"]["cider"]
        else:
            ours = {name: results["caption"][key] for name, key in _CAPTION_METRICS.items()}
    if table == 5 and "retrieval" in results:
        scores = results["retrieval"]
        ours = {f"coco.{key}": scores[key] for key in scores if key[:4] in ("tr_r", "ir_r")}
    return ours


def print_results(results: dict[str, Any], notes: bool = True) -> None:
    """Every scalar as a line of a table, then what was left out."""
    for task in ("caption", "vqa", "gqa", "retrieval"):
        for key, value in _flat(results.get(task, {})):
            print(f"{task + '.' + key:44}{value:>10.3f}")
    for note in results.get("caption", {}).get("notes", []) if notes else []:
        print(f"note: {note}")


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    lines: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            lines.append((prefix + key, value))
    return lines


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
