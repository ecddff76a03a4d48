"""BERT for the Q-Former: the tokenizer of the text that it reads, and the weights it starts from.

The paper initialises the Q-Former with BERT-base (section 3.1). ``[DEC]``, the token that begins a
text to be generated (section 3.2), is added to BERT's tokenizer as its last one.
"""

import os
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer

from jobs.models.files import find_folder, read_state, readable
from jobs.models.missing_parts import check_tokenizer
from jobs.recipes.schema import Stage1Recipe, Stage2Recipe
from modeling.blip2 import Stage1, Stage1Config, Stage2, Stage2Config
from modeling.language.text import IMAGE_TOKEN
from modeling.names import from_bert

DEC = "[DEC]"

# Tokenising is a small part of a step: its threads are not worth the warning after a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def load_bert_tokenizer(name: str) -> Any:
    """BERT's tokenizer with ``[DEC]`` added as its last token (id 30522 for bert-base-uncased).

    Raises:
        ValueError: ``name`` is neither a folder with a tokenizer nor a hub id that can be reached.
    """
    folder = find_folder("tokenizer", name, weights=False)
    check_tokenizer("tokenizer", folder)
    with readable("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([DEC], special_tokens=True)
    return tokenizer


def load_reader(name: str, model: Stage1Config | Stage2Config) -> Any:
    """BERT's tokenizer with ``[DEC]``, checked against the Q-Former that reads the text.

    Raises:
        ValueError: The tokenizer cannot be loaded, or its number of tokens is not the length of
            the Q-Former's word embedding, so that its ids would mean other words.
    """
    tokenizer = load_bert_tokenizer(name)
    tokens, rows = len(tokenizer), model.qformer.vocab
    tokens -= IMAGE_TOKEN in tokenizer.get_added_vocab()
    generates = isinstance(model, Stage1Config) and model.itg
    if tokens != rows and (generates or tokens - 1 != rows):  # without ITG nobody reads [DEC]
        raise ValueError(
            f"tokenizer {name!r} has {tokens:,} words with {DEC}, but the Q-Former's embedding has "
            f"{rows:,} rows; give the tokenizer that it was trained with"
        )
    return tokenizer


def tokenise(
    tokenizer: Any, texts: list[str], max_text: int = 32, keep: Literal["first", "last"] = "first"
) -> dict[str, Tensor]:
    """Token ids of texts, padded to the longest of them.

    Args:
        max_text: largest number of tokens; longer texts are cut.
        keep: words of a longer text that stay; ``[CLS]`` and ``[SEP]`` always do.

    Returns:
        ``ids`` and ``mask`` (1 for a token, 0 for padding), both (B, L) int64.
    """
    tokenizer.truncation_side = "right" if keep == "first" else "left"
    found = tokenizer(
        texts, padding=True, truncation=True, max_length=max_text, return_tensors="pt"
    )
    return {"ids": found["input_ids"], "mask": found["attention_mask"]}


def tokenise_instructions(
    tokenizer: Any, texts: list[str], recipe: Stage2Recipe
) -> dict[str, Tensor]:
    """``tokenise`` for the Q-Former of stage 2: instructions keep their last words, and questions,
    as in the reference, their first.
    """
    keep: Literal["first", "last"] = "last" if recipe.language.max_prompt else "first"
    return tokenise(tokenizer, texts, recipe.max_question, keep)


def text_reader(recipe: Stage1Recipe) -> Any:
    """``tokenise`` with the recipe's tokenizer and text length, as the loader takes it."""
    reader = load_reader(recipe.tokenizer, recipe.model)
    return partial(tokenise, reader, max_text=recipe.max_text)


def start_from_bert(module: Stage1 | Stage2, name: str) -> None:
    """Initialise a Q-Former with BERT's weights; parameters that BERT lacks stay random.

    Args:
        module: stage 1, or a stage 2 whose Q-Former reads text; changed in place.
        name: hub id or folder of the BERT.

    Raises:
        ValueError: BERT has other sizes than the Q-Former, or fewer words than the tokenizer.
    """
    state = read_state(find_folder("BERT", name))
    layers = module.config.qformer.layers
    own = dict(module.named_parameters())
    with torch.no_grad():
        for key, tensor in from_bert(state, layers).items():
            if key not in own:
                continue
            target: Tensor = own[key]
            if "word_embeddings" in key or key == "lm_head.bias":
                target = target[: len(tensor)]
            few = "word_embeddings" in key and len(tensor) < len(own[key]) - 1  # it has no [DEC]
            if few or target.shape != tensor.shape:
                raise ValueError(
                    f"bert {name!r}: {key} has shape {tuple(tensor.shape)}, "
                    f"the recipe's Q-Former {tuple(own[key].shape)}; give a BERT of its size and "
                    "of its tokenizer"
                )
            target.copy_(tensor)
