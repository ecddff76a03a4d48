"""Rows for Hugging Face's ``<image>`` token in a language model's word matrices."""

from dataclasses import replace

import torch
from torch import Tensor

from jobs.interchange.parts import Frozen, language_outline
from jobs.models.tensors import Lazy, Tensors


def add_rows(language: Frozen, rows: int) -> Frozen:
    """The language model with rows added to its word matrices, for the ``<image>`` token.

    An added input row is zero: the visual prompts take its place. An added output row is the mean
    of the others. Its logit is never the largest, so that greedy decoding does not change. Where
    input and output are one matrix, the row is the mean too.
    """
    given, said = _word_matrices(language)
    tensors: Tensors = dict(language.tensors)
    for name in given | said:
        if name in tensors:
            tensors[name] = _longer(tensors[name], rows, mean=name in said)
    config = language.config | {"vocab_size": language.config["vocab_size"] + rows}
    return replace(language, config=config, tensors=tensors)


def strip_rows(language: Frozen, rows: int) -> Frozen:
    """The language model without the rows that ``add_rows`` added."""
    given, said = _word_matrices(language)
    tensors: Tensors = dict(language.tensors)
    for name in given | said:
        if name in tensors:
            tensors[name] = _shorter(tensors[name], rows)
    config = language.config | {"vocab_size": language.config["vocab_size"] - rows}
    return replace(language, config=config, tensors=tensors)


def _word_matrices(language: Frozen) -> tuple[set[str], set[str]]:
    """All names of the input matrix and of the output matrix (and bias), tied names included."""
    model = language_outline(language.config)
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    given = names[id(model.get_input_embeddings().weight)]
    said = set().union(*(names[id(p)] for p in model.get_output_embeddings().parameters()))
    return given, said


def _longer(lazy: Lazy, rows: int, mean: bool) -> Lazy:
    def read() -> Tensor:
        own = lazy.read()
        row = own.mean(0, keepdim=True, dtype=torch.float32).to(own.dtype)
        return torch.cat((own, (row if mean else torch.zeros_like(row)).repeat_interleave(rows, 0)))

    return Lazy((lazy.shape[0] + rows, *lazy.shape[1:]), lazy.dtype, read)


def _shorter(lazy: Lazy, rows: int) -> Lazy:
    shape = (lazy.shape[0] - rows, *lazy.shape[1:])
    return Lazy(shape, lazy.dtype, lambda: lazy.read()[:-rows])
