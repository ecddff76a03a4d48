"""The Python door: a trained checkpoint as an object that captions, answers, embeds and matches.

    from jobs.predict import load

    model = load("runs/demo/train/t5")
    model.caption(["a.jpg", "b.jpg"])
    model.answer(["a.jpg", "a.jpg"], ["What colour is the star?", "Is there a circle?"])
    model.chat("a.jpg").ask("What is in the picture?")

    model = load("runs/demo/train/stage1")
    model.match(["a.jpg", "b.jpg"], ["a red star", "a blue circle"])

A stage-2 checkpoint becomes a ``Writer``, one of LLaVA a ``LlavaWriter``, a stage-1 checkpoint an
``Embedder``; ``load_writer`` and ``load_embedder`` give one of the two, or refuse the checkpoint.
Images are paths, encoded bytes, PIL images or arrays. An image that is given several times in a
call is encoded once.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from cluster.storage.cache import default_folder
from jobs.interchange import formats
from jobs.interchange.huggingface import is_huggingface
from jobs.interchange.llava import formats as llava_formats
from jobs.models import llava
from jobs.models.languages import adapter
from jobs.models.trained import Trained, load_trained
from jobs.prediction.arithmetic import PredictDtype
from jobs.prediction.chat import Chat
from jobs.prediction.embedder import Embedder, ImageFeatures, pool
from jobs.prediction.llava import LlavaWriter
from jobs.prediction.pictures import Picture, check_pictures, read_picture
from jobs.prediction.predictor import Predictor, WrongStage
from jobs.prediction.presets import CAPTION, INSTRUCT, INSTRUCT_ANSWER, VQA
from jobs.prediction.writer import Writer
from modeling import linear
from modeling.device import pick_device
from modeling.language.drawing import SampledSettings
from modeling.precision import DTYPES, multiplies_bf16

__all__ = [
    "CAPTION",
    "INSTRUCT",
    "INSTRUCT_ANSWER",
    "VQA",
    "Chat",
    "Embedder",
    "ImageFeatures",
    "LlavaWriter",
    "Picture",
    "PredictDtype",
    "Predictor",
    "PromptTemplate",
    "SampledSettings",
    "Writer",
    "WrongStage",
    "check_pictures",
    "load",
    "load_embedder",
    "load_writer",
    "pool",
    "read_picture",
]

PromptTemplate = Literal["recipe", "plain", "chat"]


def load(
    checkpoint: str | Path,
    device: str = "auto",
    dtype: PredictDtype = "auto",
    batch_size: int = 64,
    prompt_template: PromptTemplate = "recipe",
) -> Writer | Embedder:
    """Load a checkpoint of stage 1 or 2 with its frozen models.

    Args:
        checkpoint: a run's folder (its latest checkpoint), one checkpoint's folder, or a Hugging
            Face BLIP-2 folder, which is converted in memory.
        device: torch's name of the device, such as ``cpu`` or ``cuda``; ``auto``: ``cuda`` where
            there is a GPU.
        dtype: number format of the frozen models. ``recipe`` is the one they were trained with;
            ``auto`` is the same, except fp32 in place of bf16 on a device that has no bf16
            instructions.
        batch_size: number of images or texts in one forward pass.
        prompt_template: ``chat`` writes prompts with the language model's chat template, ``plain``
            without it, ``recipe`` as in training.

    Returns:
        A ``Writer`` for stage 2, an ``Embedder`` for stage 1.

    Raises:
        ValueError: no checkpoint there, a damaged one, an unknown dtype or device, or a chat
            template asked of a language model that has none.
    """
    if dtype not in get_args(PredictDtype):
        raise ValueError(f"dtype {dtype!r}: choose one of {', '.join(get_args(PredictDtype))}")
    device = pick_device(device)
    linear.CHOICES.keep_in(default_folder())
    foreign = is_huggingface(Path(checkpoint))
    kind = "hf" if foreign else "native"
    if llava_formats.concerns(kind, checkpoint):
        if prompt_template != "recipe":
            raise ValueError(
                f"prompt template {prompt_template!r}: a checkpoint of LLaVA writes prompts in the "
                "layout that it was trained with; leave it out"
            )
        return _load_llava(checkpoint, kind, device, dtype, batch_size)
    trained = (
        formats.load(Path(checkpoint), device) if foreign else load_trained(checkpoint, device)
    )
    if dtype == "auto":
        dtype = "recipe" if multiplies_bf16(device) else "fp32"
    if dtype != "recipe":
        trained.encoder.to(DTYPES[dtype])
        if trained.language is not None:
            trained.language.model.to(DTYPES[dtype])
    if prompt_template != "recipe":
        trained = _with_template(trained, prompt_template)
    predictor = Embedder if trained.recipe.kind == "stage1" else Writer
    return predictor(trained, device, batch_size)


def load_writer(checkpoint: str | Path, device: str = "auto", **options: Any) -> Writer:
    """``load``, for a checkpoint with a language model.

    Raises:
        WrongStage: a ValueError; the checkpoint is one of stage 1.
    """
    model = load(checkpoint, device, **options)
    if isinstance(model, Embedder):
        raise WrongStage(f"{checkpoint}: {model.lacks}")
    return model


def load_embedder(checkpoint: str | Path, device: str = "auto", **options: Any) -> Embedder:
    """``load``, for a checkpoint of stage 1.

    Raises:
        WrongStage: a ValueError; the checkpoint is not one of stage 1.
    """
    model = load(checkpoint, device, **options)
    if not isinstance(model, Embedder):
        raise WrongStage(f"{checkpoint}: {model.lacks}")
    return model


def _load_llava(
    checkpoint: str | Path, kind: str, device: str, dtype: PredictDtype, batch_size: int
) -> LlavaWriter:
    """A LLaVA checkpoint of ours or a folder of Hugging Face's LLaVA."""
    if kind == "hf":
        trained = llava_formats.read(kind, Path(checkpoint)).load(device)
    else:
        trained = llava.load_trained(checkpoint, device)
    if dtype == "auto":
        dtype = "recipe" if multiplies_bf16(device) else "fp32"
    if dtype != "recipe":
        trained.encoder.to(DTYPES[dtype])
        trained.language.to(DTYPES[dtype])
    return LlavaWriter(trained, device, batch_size)


def _with_template(trained: Trained, template: Literal["plain", "chat"]) -> Trained:
    """The checkpoint with prompts that are written in another way than in training."""
    if trained.language is None:
        raise ValueError(
            f"prompt template {template!r}: this is a stage-1 checkpoint, which has no language "
            "model; leave it out"
        )
    choice = replace(trained.recipe.language, prompt_template=template)
    language = adapter(choice, trained.language.model, trained.language.tokenizer)
    recipe = replace(trained.recipe, language=choice)
    return replace(trained, recipe=recipe, language=language)
