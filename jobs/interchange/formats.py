"""Checkpoints of three formats, read into one common form (``Parts``) and written from it.

    from jobs import interchange

    parts = interchange.read("hf", Path("blip2-opt-2.7b"))
    interchange.write(parts, "native", Path("runs/opt"))

``native`` is a checkpoint folder of ours, ``hf`` a Hugging Face folder (BLIP-2 or InstructBLIP),
``lavis`` a ``.pth`` of salesforce/LAVIS. Nothing in a file is ever executed.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer

from jobs.interchange.frozen_models import with_frozen
from jobs.interchange.huggingface import read_huggingface, write_huggingface
from jobs.interchange.lavis import read_lavis, write_lavis
from jobs.interchange.native import read_native, write_native
from jobs.interchange.parts import Options, Parts, language_outline
from jobs.models.bert import load_reader
from jobs.models.encoders import eva_sizes
from jobs.models.files import dtype_of, local_folder
from jobs.models.languages import Language, adapter
from jobs.models.missing_parts import check_tokenizer
from jobs.models.tensors import check_new
from jobs.models.trained import Recipe, Trained
from jobs.recipes.schema import LanguageChoice, Stage2Recipe
from modeling.language.text import check_words
from modeling.names import blip2_vision_to_eva
from modeling.vision.encoders import ImageEncoder, build_eva_encoder, freeze

Format = Literal["native", "hf", "lavis"]
__all__ = [
    "Format",
    "Options",
    "Parts",
    "load",
    "read",
    "write",
]


def read(kind: Format, path: Path, options: Options | None = None) -> Parts:
    """Read a checkpoint.

    Args:
        kind: format of ``path``.
        options: settings that the checkpoint itself does not hold.

    Raises:
        ValueError: The checkpoint is damaged or of another format, or lacks a setting that
            ``options`` has to give.
    """
    if kind == "lavis":
        return read_lavis(path, options)
    return read_huggingface(path, options) if kind == "hf" else read_native(path)


def write(
    parts: Parts, kind: Format, out: Path, options: Options | None = None, frozen: bool = False
) -> list[str]:
    """Write a checkpoint; ``out`` appears when it is complete, or not at all.

    Args:
        kind: format of ``out``.
        frozen: write the frozen models into a LAVIS file too.

    Returns:
        Notes for the user, one line each.

    Raises:
        ValueError: ``out`` exists already, or the format has no place for a part.
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
    """Check the tokenizers on this machine against the models that use them.

    Raises:
        ValueError: The language model's folder has no tokenizer, or a tokenizer has another
            number of tokens than its model.
    """
    recipe, language = parts.recipe, parts.language
    if recipe.model.qformer.text:
        name = options.tokenizer or str(parts.tokenizer or "") or recipe.tokenizer
        if local_folder(name) is not None:
            load_reader(name, recipe.model)
    if language is not None and language.files is not None:
        check_tokenizer("language model", language.files)
        words = AutoTokenizer.from_pretrained(language.files)
        rows = language_outline(language.config).get_input_embeddings().num_embeddings
        check_words(words, rows, f"language model {language.files}")


def load(folder: Path, device: torch.device | str = "cpu") -> Trained[Recipe]:
    """A Hugging Face folder as our modules, converted in memory.

    Raises:
        ValueError: The folder is not one of BLIP-2 or InstructBLIP, or is damaged.
    """
    parts = read_huggingface(folder)
    recipe = parts.recipe
    encoder = _encoder(parts).to(device)
    module = parts.module().to(device).eval()
    tokenizer = _reader(parts, folder) if recipe.model.qformer.text else None
    language = None
    if isinstance(recipe, Stage2Recipe):
        language = _language(parts, recipe.language)
        language.to(device)
    return Trained(recipe, 0, encoder, module, tokenizer, language)


def _reader(parts: Parts, folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder's Q-Former: its own, else BERT's."""
    if parts.tokenizer is not None:
        return load_reader(str(parts.tokenizer.absolute()), parts.recipe.model)
    name = parts.recipe.tokenizer
    try:
        return load_reader(name, parts.recipe.model)
    except ValueError as broken:
        raise ValueError(
            f"{folder} has no tokenizer files for its Q-Former, and {name}, which would be taken "
            "for them, cannot be loaded; save the processor there too"
        ) from broken


def _encoder(parts: Parts) -> ImageEncoder:
    """The vision tower of a Hugging Face folder."""
    frozen, choice = parts.encoder, parts.recipe.encoder
    assert frozen is not None
    sizes, dtype = eva_sizes(frozen.config), dtype_of(choice.dtype)
    state = {name: lazy.read() for name, lazy in frozen.tensors.items()}
    state = blip2_vision_to_eva(state, sizes.blocks)
    return freeze(build_eva_encoder(sizes, choice.image_size, state, dtype=dtype), dtype)


def _language(parts: Parts, choice: LanguageChoice) -> Language:
    """The language model of a Hugging Face folder, its weights mapped from the files."""
    frozen = parts.language
    assert frozen is not None and frozen.files is not None
    outline = language_outline(frozen.config)
    state = {name: lazy.read() for name, lazy in frozen.tensors.items()}
    model = type(outline).from_pretrained(
        None, config=outline.config, state_dict=state, dtype=dtype_of(choice.dtype)
    )
    check_tokenizer("Hugging Face folder", frozen.files)
    return adapter(choice, model, AutoTokenizer.from_pretrained(frozen.files))
