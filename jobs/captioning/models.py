"""CapFilt's models: folders, image processors, revisions, and the worker that holds them."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.models import image_processors
from jobs.models.files import find_folder, local_path
from jobs.models.missing_parts import is_hub_id
from jobs.recipes.capfilt import CapFiltRecipe
from modeling.linear import Library, products_by
from modeling.precision import DTYPES, chosen, multiplies_bf16
from pipeline.capfilt.describe import Described, ImageSpec, ModelInput, describe
from pipeline.capfilt.memory import ShrinkingBatches

_REVISION_FILES = ("*.json", "*.safetensors", "*.txt")


def model_folder(what: str, name: str) -> Path:
    """The folder of a model; a hub id that this machine's cache lacks is fetched first.

    Of the processes of a machine one fetches, and the others wait for it.

    Args:
        what: the model's part in the job (``captioner``), for messages.
        name: a folder, relative to the clone or to the working directory, or a hub id.

    Raises:
        ValueError: there is no such folder, or the hub does not give the model.
    """
    try:
        return find_folder(what, name, fetch=False)
    except ValueError:
        if local_path(name) is not None or not is_hub_id(name):
            raise
    print(f"{what} {name}: not in this machine's cache; fetching it from the hub", flush=True)
    return find_folder(what, name)


def revision(folder: Path) -> str:
    """A hash of the files that decide a model's results: 32 hex digits."""
    digest = hashlib.sha256()
    files = {path for pattern in _REVISION_FILES for path in folder.glob(pattern)}
    for path in sorted(files):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Processor:
    """The image processor of a model's folder.

    Attributes:
        spec: size, cropping and resize.
        mean, std: channel means and standard deviations of pixels in [0, 1].
    """

    spec: ImageSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_processor(folder: Path) -> Processor:
    """Read ``preprocessor_config.json`` (or the newer ``processor_config.json``).

    Raises:
        ValueError: neither is there, or its preparation is none we know.
    """
    found = image_processors.read_huggingface(folder)
    if found is None:
        raise ValueError(f"{folder}: no preprocessor_config.json; save the image processor with it")
    pixels = found.checked().pixels
    assert pixels.interpolation != "auto"
    crop = pixels.geometry == "crop"
    spec = ImageSpec(found.size, crop, pixels.interpolation, pixels.resize_to)
    return Processor(spec, pixels.mean, pixels.std)


class Describer:
    """Captioner and scorer in one process, on one GPU where there is one: a model worker.

    Args:
        recipe: recipe with a settled ``dtype``, or ``auto`` for this process's device.
        products: library of all fp32 matrix products on a CPU, so that every worker of a run
            makes the same bits.
    """

    def __init__(self, recipe: CapFiltRecipe, products: Library = "torch") -> None:
        import torch
        from transformers import AutoTokenizer, BlipForConditionalGeneration, CLIPModel
        from transformers.utils import logging

        from modeling.captioning.captioner import Captioner
        from modeling.captioning.clip_scorer import ClipScorer

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = DTYPES[chosen(recipe.dtype, multiplies_bf16(device))]
        self.products = products
        self.batch_size = recipe.batch_size
        folder = model_folder("captioner", recipe.captioner)
        processor = read_processor(folder)
        model: Any = BlipForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        captioner = Captioner(
            model.to(device),
            AutoTokenizer.from_pretrained(folder),
            recipe.sampling,
            processor.mean,
            processor.std,
            seed=recipe.seed,
        )
        self.captioner = ShrinkingBatches[str, list[str]](captioner, "")
        folder = model_folder("ranker", recipe.ranker)
        processor = read_processor(folder)
        model = CLIPModel.from_pretrained(folder, dtype=dtype)
        scorer = ClipScorer(
            model.to(device), AutoTokenizer.from_pretrained(folder), processor.mean, processor.std
        )
        self.scorer = ShrinkingBatches[Sequence[str], list[float]](scorer, ())

    def process(self, model_input: ModelInput | None) -> Described | None:
        """Captions and scores of a prepared shard, if there is one."""
        if model_input is None:
            return None
        start = time.perf_counter()
        with products_by(self.products):
            described = describe(model_input, self.captioner, self.scorer, self.batch_size)
        described.seconds["models"] = time.perf_counter() - start
        sizes = {"captioner": self.captioner.size, "scorer": self.scorer.size}
        return replace(described, short={name: size for name, size in sizes.items() if size})
