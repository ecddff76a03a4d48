"""What the answers of an evaluation depend on: checkpoint, data, prompts, arithmetic.

It is written beside the answers before the first of them (``evaluation.chunks.store``), so that
answers that were made otherwise are never mixed, and it stands in ``results.json``.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from evaluation.chunks.store import AnswerStore
from jobs.evaluation.arguments import EvaluateArgs
from jobs.evaluation.tasks import TaskData
from jobs.predict import CAPTION, VQA
from jobs.prediction.arithmetic import Arithmetic, settled, versions
from jobs.prediction.identity import Identity


def settle(args: EvaluateArgs, begun: Mapping[str, Any], device: str) -> Arithmetic:
    """The arithmetic of an evaluation: that of the answers that are there, else this machine's.

    Args:
        begun: result of ``begun``.
        device: device of the workers.
    """
    return settled(args.further.dtype, threads_of(args, begun), begun, device)


def threads_of(args: EvaluateArgs, begun: Mapping[str, Any]) -> int:
    """CPU threads of a worker: those asked for, or those of the answers that are there."""
    alone = 1 if uses_ray(args) else torch.get_num_threads()
    return args.work.threads or begun.get("threads") or alone


def begun(args: EvaluateArgs, store: AnswerStore, data: Iterable[TaskData]) -> Mapping[str, Any]:
    """The arithmetic of the answers that are there to any of the tasks; empty: there are none."""
    if args.work.replace:
        return {}
    plans = (store.plan(of_task.task, of_task.split) for of_task in data)
    return next((plan["arithmetic"] for plan in plans if plan is not None), {})


def _cluster(args: EvaluateArgs) -> str | None:
    return args.work.address or os.environ.get("RAY_ADDRESS")


def uses_ray(args: EvaluateArgs) -> bool:
    """Whether workers on a Ray answer, and not this process."""
    return not args.work.score_only and (args.work.workers > 0 or _cluster(args) is not None)


def plan_of(data: TaskData, identity: Identity, arithmetic: Arithmetic) -> dict[str, Any]:
    """What the answers to a task depend on, beside its items."""
    args = data.args
    plan: dict[str, Any] = {
        "checkpoint": identity.digest,
        "step": identity.step,
        "split": data.split,
        "limit": args.limit,
        "arithmetic": arithmetic.described(),
        "batch_size": args.batch_size,
        "chunk": args.work.chunk,
        "seed": args.further.seed,
        "libraries": versions(),
    }
    return plan | {"preset": preset(data)}


def preset(data: TaskData) -> dict[str, Any]:
    """The prompt and the decoding of a task."""
    args = data.args
    if data.stage == "stage1":
        return {"k": args.retrieval.k, "captions": args.retrieval.captions,
                "rerank": args.retrieval.rerank}  # fmt: skip
    way = data.benchmark.way if data.benchmark else "caption" if data.task == "caption" else ""
    common = {"prompts": args.scoring.prompts, "prompt_template": args.further.prompt_template}
    if way == "caption":
        return {**common, "prompt": args.further.caption_prompt, "decoding": asdict(CAPTION)}
    if way == "choose" or data.candidates:
        ranked: Mapping[str, Any] = {"score": args.answering.candidate_score}
        if data.candidates:
            text = "\n".join(data.candidates)
            ranked = {**ranked, "candidates": hashlib.sha256(text.encode()).hexdigest()}
        return {**common, "answers": "rank", **ranked}
    if way == "judge":
        return {**common, "answers": "generate", "longest": args.judging.longest_answer}
    return {**common, "answers": "generate", "decoding": asdict(VQA)}
