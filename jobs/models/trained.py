"""Recipes and trained checkpoints brought to life: where files become modules."""

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from cluster import checkpoint
from jobs import recipes
from jobs.models.encoder_settings import is_here, own_size, with_older
from jobs.models.encoders import encoder_width, load_encoder
from jobs.models.files import dtype_of, find_folder, local_folder, read_state, readable
from jobs.models.languages import Language, language_width, load_language
from jobs.models.missing_parts import check_tokenizer, find_checkpoint
from jobs.recipes.schema import Stage1Recipe, Stage2Recipe
from modeling.blip2 import (
    Stage1,
    Stage1Config,
    Stage2,
    Stage2Config,
    WithEncoder,
    stage2_from_stage1,
)
from modeling.language.text import IMAGE_TOKEN
from modeling.names import from_bert
from modeling.vision.encoders import ImageEncoder, freeze

DEC = "[DEC]"
Recipe = TypeVar("Recipe", Stage1Recipe, Stage2Recipe)

# Tokenizing is a small part of a step: its threads are not worth the warning after a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@dataclass(frozen=True)
class Trained:
    """A checkpoint brought back to life on one device, everything in eval mode.

    Attributes:
        recipe: the resolved recipe it was trained with.
        encoder: the image encoder; a finetuned one with the checkpoint's weights.
        module: ``Stage1`` or ``Stage2`` with the checkpoint's weights.
        tokenizer: BERT's with ``[DEC]`` where the Q-Former reads text (stage 1, VQA), else None.
        language: the frozen language model (stage 2), else None.
    """

    recipe: Any
    step: int
    encoder: ImageEncoder
    module: Stage1 | Stage2
    tokenizer: Any = None
    language: Language | None = None


def load_bert_tokenizer(name: str) -> Any:
    """BERT's tokenizer with ``[DEC]`` added as its last token (id 30522 for bert-base-uncased).

    Raises:
        ValueError: no such folder or hub id.
    """
    folder = find_folder("tokenizer", name, weights=False)
    check_tokenizer("tokenizer", folder)
    with readable("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([DEC], special_tokens=True)
    return tokenizer


def load_reader(name: str, model: Stage1Config | Stage2Config) -> Any:
    """BERT's tokenizer with ``[DEC]``, for a Q-Former that reads text.

    Raises:
        ValueError: no such folder or hub id, or a tokenizer of another length than the Q-Former's
            embedding: its ids would stand for other words, or for none.
    """
    tokenizer = load_bert_tokenizer(name)
    words, rows = len(tokenizer), model.qformer.vocab
    words -= IMAGE_TOKEN in tokenizer.get_added_vocab()
    generates = isinstance(model, Stage1Config) and model.itg
    if words != rows and (generates or words - 1 != rows):  # without ITG nobody reads [DEC]
        raise ValueError(
            f"tokenizer {name!r} has {words:,} words with {DEC}, but the Q-Former's embedding has "
            f"{rows:,} rows; give the tokenizer that it was trained with"
        )
    return tokenizer


def tokenise(tokenizer: Any, texts: list[str], max_text: int = 32) -> dict[str, Tensor]:
    """``ids`` and ``mask`` (B, L), int64, padded to the batch's longest, at most ``max_text``."""
    rows = tokenizer(texts, padding=True, truncation=True, max_length=max_text, return_tensors="pt")
    return {"ids": rows["input_ids"], "mask": rows["attention_mask"]}


def text_reader(recipe: Stage1Recipe) -> Any:
    """``tokenise`` with the recipe's tokenizer and length, for the loader."""
    reader = load_reader(recipe.tokenizer, recipe.model)
    return partial(tokenise, reader, max_text=recipe.max_text)


def load_trained(path: str | Path, device: torch.device | str = "cpu") -> Trained:
    """Load a checkpoint (a run's folder for its latest, or a step's) with its frozen models.

    Raises:
        ValueError: no checkpoint there, a damaged one, or frozen models that are gone.
    """
    found = find_checkpoint(path)
    found.verify()
    recipe = read_recipe(found)
    trained = recipe.encoder.train
    encoder = load_encoder(recipe.encoder, weights=not trained)
    module = Stage1(recipe.model) if recipe.kind == "stage1" else Stage2(recipe.model)
    whole: nn.Module = WithEncoder(encoder, module) if trained else module
    checkpoint.load_weights(whole, found.trainable(), f"checkpoint {found.folder}")
    encoder.checkpoint_blocks(False)
    freeze(encoder, dtype_of(recipe.encoder.dtype))
    parts: dict[str, Any] = {"encoder": encoder.to(device), "module": module.to(device).eval()}
    if recipe.model.qformer.text:
        parts["tokenizer"] = load_reader(recipe.tokenizer, recipe.model)
    if recipe.kind == "stage2":
        parts["language"] = load_language(recipe.language)
        parts["language"].to(device)
    return Trained(recipe, found.step, **parts)


def read_recipe(found: checkpoint.Checkpoint) -> Any:
    """The typed recipe in a checkpoint.

    Raises:
        ValueError: it is not one of a training stage.
    """
    kinds = {"stage1": Stage1Recipe, "stage2": Stage2Recipe}
    kind = found.recipe.get("kind")
    if kind not in kinds:
        raise ValueError(f"checkpoint {found.folder}: kind {kind!r} is none of {list(kinds)}")
    recipe = recipes.from_dict(kinds[kind], with_older(found.recipe), f"checkpoint {found.folder}")
    return _with_own_models(recipe, found.folder)


def _with_own_models(recipe: Any, folder: Path) -> Any:
    """Names that begin with ``./`` mean folders inside the checkpoint (``jobs/convert.py``)."""
    absolute = folder.absolute()

    def place(name: str) -> str:
        return str(absolute / name) if name.startswith("./") else name

    encoder = replace(recipe.encoder, name=place(recipe.encoder.name))
    recipe = replace(recipe, encoder=encoder, tokenizer=place(recipe.tokenizer))
    if recipe.kind == "stage1":
        return recipe
    return replace(recipe, language=replace(recipe.language, name=place(recipe.language.name)))


def fit(recipe: Recipe) -> Recipe:
    """The recipe with the widths and token ids of the frozen models in their folders.

    A model that is not in a local folder is left alone: the recipe's numbers stand.

    Raises:
        ValueError: no such encoder, or one whose own size is asked for and not known.
    """
    if not recipe.encoder.image_size:
        recipe = _at_own_size(recipe)
    width = encoder_width(recipe.encoder)
    if isinstance(recipe, Stage1Recipe):
        model = recipe.model
        qformer = replace(model.qformer, encoder_width=width or model.qformer.encoder_width)
        if local_folder(recipe.tokenizer) is not None:
            tokenizer = load_bert_tokenizer(recipe.tokenizer)
            dec = tokenizer.convert_tokens_to_ids(DEC)
            qformer = replace(qformer, vocab=len(tokenizer))
            model = replace(model, dec_token_id=dec)
        return replace(recipe, model=replace(model, qformer=qformer))
    second = recipe.model
    qformer = replace(second.qformer, encoder_width=width or second.qformer.encoder_width)
    if qformer.text and local_folder(recipe.tokenizer) is not None:
        qformer = replace(qformer, vocab=len(load_bert_tokenizer(recipe.tokenizer)))
    llm_width = language_width(recipe.language) or second.llm_width
    return replace(recipe, model=replace(second, qformer=qformer, llm_width=llm_width))


def _at_own_size(recipe: Recipe) -> Recipe:
    """The recipe at the image size that its encoder was made for."""
    if not is_here(recipe.encoder.name):
        raise ValueError(
            f"encoder.image_size = 0: {recipe.encoder.name!r} is yet to be fetched, so that "
            "its own size is unknown; give --encoder.image-size"
        )
    size = own_size(recipe.encoder)
    run = replace(recipe.run, transform=replace(recipe.run.transform, size=size))
    return replace(recipe, encoder=replace(recipe.encoder, image_size=size), run=run)


def start_from_bert(module: Stage1 | Stage2, name: str) -> None:
    """Give a stage-1 Q-Former BERT's weights; what BERT does not have stays random.

    Raises:
        ValueError: BERT's shapes are not the recipe's, or it has fewer words than the tokenizer.
    """
    state = read_state(find_folder("BERT", name))
    layers = module.config.qformer.layers
    own = dict(module.named_parameters())
    with torch.no_grad():
        for key, tensor in from_bert(state, layers).items():
            if key not in own:
                continue
            target = own[key][: len(tensor)] if "word_embeddings" in key else own[key]
            if key == "lm_head.bias":
                target = own[key][: len(tensor)]
            few = "word_embeddings" in key and len(tensor) < len(own[key]) - 1  # it has no [DEC]
            if few or target.shape != tensor.shape:
                raise ValueError(
                    f"bert {name!r}: {key} has shape {tuple(tensor.shape)}, "
                    f"the recipe's Q-Former {tuple(own[key].shape)}; give a BERT of its size and "
                    "of its tokenizer"
                )
            target.copy_(tensor)


def start_from_stage1(module: Stage2, path: str) -> checkpoint.Checkpoint:
    """Give stage 2 the Q-Former of a stage-1 checkpoint: every key of it, and no other.

    Args:
        path: a run or checkpoint of ours, a LAVIS ``.pth``, or a Hugging Face retrieval folder.

    Raises:
        ValueError: no stage-1 checkpoint there, or one of other sizes.
    """
    found, weights = weights_of(path, "stage1", module.config.qformer.heads)
    taken = stage2_from_stage1(weights, module.config.qformer.text)
    own = dict(module.named_parameters())
    fresh = {name: p.detach() for name, p in own.items() if name.startswith("language_proj.")}
    checkpoint.load_weights(module, {**taken, **fresh}, f"--init {found.folder}")
    return found


def weights_of(path: str, kind: str, heads: int) -> tuple[checkpoint.Checkpoint, dict[str, Tensor]]:
    """The trained weights behind ``--init``: a checkpoint of ours, a LAVIS file, a Hugging Face
    folder.

    Args:
        kind: ``stage1`` or ``stage2``.
        heads: of the Q-Former that takes them.

    Raises:
        ValueError: no checkpoint there, a damaged one, or one of another kind.
    """
    from jobs.interchange import formats  # it needs this module

    if formats.is_foreign(Path(path)):
        weights = formats.foreign_weights(Path(path), kind, heads)
        return checkpoint.Checkpoint(Path(path), {"kind": kind}, {"step": 0}), weights
    found = find_checkpoint(path)
    if found.recipe.get("kind") != kind:
        raise ValueError(
            f"--init {path}: the checkpoint's kind is {found.recipe.get('kind')!r}; "
            f"give one of {kind.replace('stage', 'stage ')}"
        )
    found.verify()
    return found, found.trainable()
