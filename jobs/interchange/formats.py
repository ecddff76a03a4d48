"""Checkpoints of three formats, read to one form and written from it.

    from jobs import interchange

    parts = interchange.read("hf", Path("blip2-opt-2.7b"))
    interchange.write(parts, "native", Path("runs/opt"))

``native`` is a checkpoint folder of ours, ``hf`` a Hugging Face folder (BLIP-2 or InstructBLIP),
``lavis`` a ``.pth`` of salesforce/LAVIS. Nothing in a file is ever executed.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer

from jobs.interchange.huggingface import is_huggingface, read_huggingface, write_huggingface
from jobs.interchange.huggingface_folder import with_frozen
from jobs.interchange.lavis import read_lavis, trainable_of, write_lavis
from jobs.interchange.native import read_native, write_native
from jobs.interchange.parts import Options, Parts, language_outline
from jobs.models import trained
from jobs.models.files import dtype_of, local_folder
from jobs.models.languages import adapter
from jobs.models.missing_parts import check_tokenizer
from jobs.models.tensors import check_new, open_pth
from modeling.blip2 import Stage1Config
from modeling.language.text import check_words
from modeling.names import blip2_vision_to_eva
from modeling.vision.encoders import EvaConfig, ImageEncoder, build_eva_encoder, freeze

Format = Literal["native", "hf", "lavis"]
__all__ = [
    "Format",
    "Options",
    "Parts",
    "check_new",
    "foreign_weights",
    "is_foreign",
    "load",
    "read",
    "read_huggingface",
    "read_lavis",
    "read_native",
    "write",
]


def read(kind: Format, path: Path, options: Options | None = None) -> Parts:
    """Read a checkpoint.

    Raises:
        ValueError: It is damaged, of another kind, or lacks what ``options`` could say.
    """
    if kind == "lavis":
        return read_lavis(path, options)
    return read_huggingface(path, options) if kind == "hf" else read_native(path)


def write(
    parts: Parts, kind: Format, out: Path, options: Options | None = None, frozen: bool = False
) -> list[str]:
    """Write a checkpoint, whole or not at all; returns notes for the user.

    Args:
        frozen: put the frozen models into a LAVIS file too.

    Raises:
        ValueError: Something is at ``out`` already, or the format has no place for a part.
    """
    check_new(out)
    options = options or Options()
    if kind != "lavis":
        _check_tokenizers(parts, options)
    if kind == "native":
        write_native(parts, out)
        return []
    if kind == "lavis":
        return write_lavis(parts, out, frozen)
    return write_huggingface(with_frozen(parts, options), out, options)


def _check_tokenizers(parts: Parts, options: Options) -> None:
    """Check the tokenizers that are at hand against the models that they are for.

    Raises:
        ValueError: one is missing from the language model's folder, or is of another length.
    """
    recipe, language = parts.recipe, parts.language
    if recipe.model.qformer.text:
        name = options.tokenizer or str(parts.tokenizer or "") or recipe.tokenizer
        if local_folder(name) is not None:
            trained.load_reader(name, recipe.model)
    if language is not None and language.files is not None:
        check_tokenizer("language model", language.files)
        words = AutoTokenizer.from_pretrained(language.files)
        rows = language_outline(language.config).get_input_embeddings().num_embeddings
        check_words(words, rows, f"language model {language.files}")


def _reader(parts: Parts, folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder's Q-Former: its own, else BERT's."""
    if parts.tokenizer is not None:
        return trained.load_reader(str(parts.tokenizer.absolute()), parts.recipe.model)
    name = parts.recipe.tokenizer
    try:
        return trained.load_reader(name, parts.recipe.model)
    except ValueError as broken:
        raise ValueError(
            f"{folder} has no tokenizer files for its Q-Former, and {name}, which would be taken "
            "for them, cannot be loaded; save the processor there too"
        ) from broken


def is_foreign(path: Path) -> bool:
    """Whether a path is a LAVIS file or a Hugging Face folder rather than a checkpoint of ours."""
    return path.suffix in (".pth", ".pt") or is_huggingface(path)


def foreign_weights(path: Path, kind: str, heads: int) -> dict[str, Tensor]:
    """Trainable weights under our names from a LAVIS file or a Hugging Face folder.

    Args:
        kind: ``stage1`` or ``stage2``.
        heads: of the Q-Former that takes them, which a LAVIS file does not say.

    Raises:
        ValueError: It is of the other stage, is damaged, or has other heads.
    """
    if is_huggingface(path):
        parts = read_huggingface(path)
        model, trainable = parts.recipe.model, parts.trainable
    else:
        state, _ = open_pth(path)
        model, trainable = trainable_of(state, {"heads": heads}, f"LAVIS checkpoint {path}")
    found = "stage1" if isinstance(model, Stage1Config) else "stage2"
    if found != kind:
        there, wanted = (name.replace("stage", "stage ") for name in (found, kind))
        raise ValueError(f"--init {path}: it is a checkpoint of {there}; give one of {wanted}")
    if model.qformer.heads != heads:
        raise ValueError(
            f"--init {path}: its Q-Former has {model.qformer.heads} heads, the recipe's {heads}"
        )
    return trainable


def load(folder: Path, device: torch.device | str = "cpu") -> trained.Trained:
    """A Hugging Face folder as our modules, converted in memory.

    Raises:
        ValueError: It is no BLIP-2 or InstructBLIP folder, or is damaged.
    """
    parts = read_huggingface(folder)
    recipe: Any = parts.recipe
    encoder = _encoder(parts)
    module = parts.module()
    found: dict[str, Any] = {"encoder": encoder.to(device), "module": module.to(device).eval()}
    if recipe.model.qformer.text:
        found["tokenizer"] = _reader(parts, folder)
    if recipe.kind == "stage2":
        found["language"] = _language(parts)
        found["language"].to(device)
    return trained.Trained(recipe, 0, **found)


def _encoder(parts: Parts) -> ImageEncoder:
    """The vision tower of a Hugging Face folder."""
    frozen, choice = parts.encoder, parts.recipe.encoder
    assert frozen is not None
    own, dtype = frozen.config, dtype_of(choice.dtype)
    sizes = EvaConfig(
        own["hidden_size"],
        own["num_hidden_layers"],
        own["num_attention_heads"],
        own["intermediate_size"],
        own["patch_size"],
        own["layer_norm_eps"],
    )
    state = {name: lazy.read() for name, lazy in frozen.tensors.items()}
    state = blip2_vision_to_eva(state, sizes.blocks)
    return freeze(build_eva_encoder(sizes, choice.image_size, state, dtype=dtype), dtype)


def _language(parts: Parts) -> trained.Language:
    """The language model of a Hugging Face folder, its weights mapped from the files."""
    frozen, choice = parts.language, parts.recipe.language  # type: ignore[union-attr]
    assert frozen is not None and frozen.files is not None
    outline = language_outline(frozen.config)
    state = {name: lazy.read() for name, lazy in frozen.tensors.items()}
    model = type(outline).from_pretrained(
        None, config=outline.config, state_dict=state, dtype=dtype_of(choice.dtype)
    )
    check_tokenizer("Hugging Face folder", frozen.files)
    return adapter(choice, model, AutoTokenizer.from_pretrained(frozen.files))
