"""Frozen language models loaded from their folders, with one copy of their weights on each node.

Weights that are stored in the wanted number format are memory-mapped, so that all processes of a
node share the pages. Others are rewritten once into the node's cache, tensor by tensor, and mapped
from there.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from cluster.storage.cache import NodeCache
from jobs import recipes
from jobs.models.files import PICKLES, dtype_of, find_folder, local_folder, read_pth, readable
from jobs.models.fingerprint import check_fingerprint, fingerprint
from jobs.models.missing_parts import check_tokenizer
from jobs.models.tensors import Lazy, Tensors, open_folder, write_folder
from jobs.recipes.schema import LanguageChoice, Stage2Recipe, TrainRecipe
from modeling.language.adapters import DecoderLM, EncoderDecoderLM
from modeling.language.text import Rules, settle_rules

RecipeT = TypeVar("RecipeT", bound=TrainRecipe)
Language = DecoderLM | EncoderDecoderLM
WORTH_REWRITING = 1 << 30  # bytes; smaller models are cast in memory


def load_language(choice: LanguageChoice) -> Language:
    """A frozen language model and its tokenizer, in the adapter of its family.

    Raises:
        ValueError: There is no such folder or hub id, it holds no language model or one of another
            family than the recipe's, or it is a T5 in fp16, which overflows.
    """
    folder = find_folder("language model", choice.name)
    check_tokenizer("language model", folder)
    pair = checked_config(choice, folder).is_encoder_decoder
    family: Any = AutoModelForSeq2SeqLM if pair else AutoModelForCausalLM
    dtype = dtype_of(choice.dtype)
    with readable("language model", choice.name):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = family.from_pretrained(
            stored_as(folder, dtype), dtype=dtype, **config_changes(choice.text_rules, pair)
        )
    check_fingerprint(choice.digest, dict(model.named_parameters()), choice.name)
    return adapter(choice, model, tokenizer)


def adapter(choice: LanguageChoice, model: Any, tokenizer: Any) -> Language:
    """A loaded language model in the adapter of its family, with the recipe's text rules.

    Raises:
        ValueError: The tokenizer does not fit the model, or lacks a token or chat template that
            the recipe asks for.
    """
    family = EncoderDecoderLM if model.config.is_encoder_decoder else DecoderLM
    try:
        return family(
            model,
            tokenizer,
            choice.max_text,
            choice.text_rules,
            choice.prompt_template,
            max_prompt=choice.max_prompt,
        )
    except ValueError as broken:
        raise ValueError(f"language model {choice.name!r}: {broken}") from broken


def config_changes(rules: Rules, pair: bool) -> dict[str, Any]:
    """Fields of a language model's configuration that its text rules change.

    InstructBLIP's code computes FlanT5 with the exact GELU, where its own configuration has the
    approximation by tanh.

    Args:
        pair: whether the model is an encoder-decoder.
    """
    return {"dense_act_fn": "gelu"} if rules == "instruct" and pair else {}


def settle_language(recipe: RecipeT, before: Mapping[str, Any] | None) -> RecipeT:
    """The recipe with text rules in place of ``auto`` and the language model's fingerprint; a model
    that is yet to be fetched keeps ``auto`` and has none.

    Args:
        before: recipe of the run that is resumed, as JSON has it; its rules stand where the
            command gives no others, and its fingerprint stands.

    Raises:
        ValueError: The language model is of another family than the recipe's.
    """
    if not isinstance(recipe, Stage2Recipe):
        return recipe
    choice = recipe.language
    folder = local_folder(choice.name)
    rules, digest = choice.text_rules, choice.digest
    if before is not None and before.get("kind") == "stage2":
        had = recipes.from_dict(LanguageChoice, before["language"])
        rules, digest = had.text_rules if rules == "auto" else rules, had.digest
    elif folder is not None:
        rules = settle_rules(rules, checked_config(choice, folder).model_type)
        digest = digest or fingerprint(open_weights(folder))
    return replace(recipe, language=replace(choice, text_rules=rules, digest=digest))


def checked_config(choice: LanguageChoice, folder: Path) -> Any:
    """A folder's configuration, checked against the recipe.

    Raises:
        ValueError: The model is of another family than the recipe's, or a T5 in fp16; the message
            names the field and the remedy.
    """
    with readable("language model", choice.name):
        config: Any = AutoConfig.from_pretrained(folder)
    kind, pair = config.model_type, config.is_encoder_decoder
    family = "encoder-decoder" if pair else "decoder"
    if choice.family not in ("any", family):
        raise ValueError(
            f"--language.name {choice.name!r} is a {kind} model ({family}), this recipe is for a "
            f"{choice.family}: give one of those, take a recipe for a {family}, or add "
            f"--language.family {family}"
        )
    if "t5" in kind and choice.dtype == "fp16":
        raise ValueError("--language.dtype fp16: T5 overflows in fp16; give bf16 or fp32")
    return config


def language_width(choice: LanguageChoice) -> int | None:
    """Width of a local model's embeddings; None for a model that is yet to be fetched.

    Raises:
        ValueError: The model is of another family than the recipe's.
    """
    folder = local_folder(choice.name)
    if folder is None:
        return None
    config = checked_config(choice, folder).get_text_config()
    return getattr(config, "word_embed_proj_dim", None) or config.hidden_size


def stored_as(folder: Path, dtype: torch.dtype, least: int = WORTH_REWRITING) -> Path:
    """A folder with the same model whose weights are safetensors in ``dtype``.

    It is the folder itself where its weights are of that form already, or have less than ``least``
    bytes. Else it is a copy in the node's cache, which the first process writes while the others
    wait.

    Raises:
        ValueError: The weights cannot be read.
    """
    tensors = open_weights(folder)
    floats = [tensor for tensor in tensors.values() if tensor.dtype.is_floating_point]
    small = sum(tensor.nbytes for tensor in floats) < least
    if small or (_is_safe(folder) and all(tensor.dtype == dtype for tensor in floats)):
        return folder
    marks = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in folder.iterdir())
    cache = NodeCache()
    final = cache.path_for(f"{folder.resolve()}\0{dtype}\0{marks}", "")
    with cache.only_one(final):
        if not final.is_dir():
            _rewrite(folder, tensors, dtype, final)
    return final


def _rewrite(folder: Path, tensors: Tensors, dtype: torch.dtype, final: Path) -> None:
    aside = final.with_name(f".{final.name}.part")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that died
    cast = {name: _cast(tensor, dtype) for name, tensor in tensors.items()}
    write_folder(aside, cast, f"{folder.name} in {str(dtype).removeprefix('torch.')}")
    for path in folder.iterdir():
        if path.suffix in (".json", ".txt", ".model") and "index" not in path.name:
            shutil.copyfile(path, aside / path.name)
    os.rename(aside, final)


def _cast(tensor: Lazy, dtype: torch.dtype) -> Lazy:
    if not tensor.dtype.is_floating_point:
        return tensor
    return Lazy(tensor.shape, dtype, lambda: tensor.read().to(dtype))


def _is_safe(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def open_weights(folder: Path) -> Tensors:
    """The weights of a folder, not read yet: of safetensors, else of torch's ``.bin`` files."""
    if _is_safe(folder):
        return open_folder(folder)
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob(PICKLES)):
        found |= read_pth("language model", str(path))
    return {name: Lazy.of(tensor) for name, tensor in found.items()}
