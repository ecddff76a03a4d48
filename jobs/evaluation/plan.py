"""What the answers of an evaluation depend on: checkpoint, data, prompts, arithmetic.

It is written beside the answers before the first of them (``evaluation.chunks.store``), so that
answers that were made otherwise are never mixed, and it stands in ``results.json``.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cluster.checkpoint import Damaged, Store
from cluster.storage.cache import default_folder
from evaluation.chunks.store import AnswerStore
from jobs.evaluation.arguments import EvaluateArgs
from jobs.evaluation.tasks import TaskData
from jobs.interchange.huggingface import is_huggingface, read_huggingface
from jobs.interchange.llava import formats as llava_formats
from jobs.models.missing_parts import find_checkpoint
from jobs.predict import CAPTION, VQA, PredictDtype
from modeling import linear
from modeling.precision import multiplies_bf16

_LIBRARIES = ("torch", "transformers", "tokenizers", "timm", "pillow")
_SAMPLE = 1 << 20  # bytes of each end of a file of a Hugging Face folder that its digest reads


@dataclass(frozen=True)
class Identity:
    """A checkpoint as results name it.

    Attributes:
        stage: ``stage1`` or ``stage2``.
        recipe: name of its recipe.
        text: rule for texts of its recipe.
        step: number of updates that were made; 0: a released checkpoint.
        digest: sha256 that changes with any of its weights.
    """

    stage: str
    recipe: str
    text: str
    step: int
    digest: str


def digest_of_checkpoint(store: Store, step: str) -> str:
    """The first 8 digits of a checkpoint's digest; "" where it is gone or damaged."""
    try:
        return _digest(store.state(step))[:8]
    except Damaged:
        return ""


def _digest(state: Mapping[str, Any]) -> str:
    """sha256 that changes with any of a checkpoint's weights."""
    files = {name: file["sha256"] for name, file in state["files"].items()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def identify(checkpoint: Path) -> Identity:
    """The checkpoint behind a path or ``s3://`` URL; its weights are not loaded.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    if is_huggingface(checkpoint):
        bridged = llava_formats.concerns("hf", checkpoint)
        recipe: Any = llava_formats.read("hf", checkpoint).recipe if bridged else None
        recipe = recipe or read_huggingface(checkpoint).recipe
        stage = _stage(recipe.kind)
        return Identity(stage, recipe.name, recipe.text, 0, _folder_digest(checkpoint))
    found = find_checkpoint(checkpoint)
    noted = found.recipe
    if "kind" not in noted or "name" not in noted:
        raise ValueError(f"checkpoint {found.where}: its recipe.json names no kind and name")
    text = str(noted.get("text", "plain"))
    return Identity(_stage(noted["kind"]), noted["name"], text, found.step, _digest(found.state))


def _stage(kind: str) -> str:
    """The stage whose tasks a checkpoint does: LLaVA's does those of stage 2."""
    return "stage1" if kind == "stage1" else "stage2"


def _folder_digest(folder: Path) -> str:
    """Digest over the names, sizes, and both ends of all files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(f"{path.name}\0{size}\0".encode())
                for place in (0, max(0, size - _SAMPLE)):
                    file.seek(place)
                    digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic of all answers of an evaluation.

    Attributes:
        device: ``cpu``, ``cuda``, or the cluster's kinds of GPU.
        dtype: number format of the frozen models, settled.
        products: library of the matrix products on a CPU.
        threads: CPU threads of a worker.
    """

    device: str
    dtype: PredictDtype
    products: linear.Library
    threads: int

    def described(self) -> dict[str, Any]:
        """Its fields for a plan; on CPUs instructions and threads decide how sums are split."""
        fields = asdict(self)
        if self.device == "cpu":
            fields["device"] = f"cpu {torch.backends.cpu.get_cpu_capability()}"
        else:
            del fields["threads"], fields["products"]
        return fields


def settle(args: EvaluateArgs, begun: Mapping[str, Any], device: str) -> Arithmetic:
    """The arithmetic of an evaluation: that of the answers that are there, else this machine's.

    Args:
        begun: result of ``begun``.
        device: device of the workers.
    """
    on_cpu = device == "cpu"
    dtype = args.further.dtype
    if dtype == "auto":
        fast = not on_cpu or multiplies_bf16("cpu")
        dtype = begun.get("dtype") or ("recipe" if fast else "fp32")
    products: Any = begun.get("products")
    if products is None:
        linear.CHOICES.keep_in(default_folder())
        products = linear.forward_library() if on_cpu else "torch"
    return Arithmetic(device, dtype, products, threads_of(args, begun))


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
        "libraries": {name: version(name) for name in _LIBRARIES},
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
