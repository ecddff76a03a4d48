"""Stage 1 of ``benchmark.py train``: ours, and the reference's algorithm."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F

from jobs.benchmarks import reference
from jobs.benchmarks.train_contenders import (
    SIZES,
    Case,
    Contender,
    encoder_flops,
    image_input,
    made_as,
    text_batch,
    with_torchs_products,
)
from modeling import flops
from modeling.blip2 import Stage1, Stage1Config
from modeling.precision import DTYPES


def stage1_case(args: Any, name: str, lengths: Sequence[int], padded: int) -> Case:
    """Stage 1 of ours and of the reference.

    Args:
        args: options of the benchmark.
        name: title of the case.
        lengths: tokens of each text.
        padded: tokens to which the reference pads its texts.
    """
    size = SIZES[args.size]
    config = size.stage1
    ids, mask = text_batch(lengths, config.qformer.vocab - 2, args.device)
    images, start = image_input(args, size), _stage1(args, config)

    def ours() -> Contender:
        module = deepcopy(start)
        return Contender(module, lambda: module(images(), ids, mask))

    def theirs() -> Contender:
        module = reference.Reference(reference.retrieval_model(config), config.dec_token_id)
        module = module.to(args.device, DTYPES[args.dtype]).train()
        reference.give_weights(start, module)
        pad = padded - ids.shape[1]
        given = F.pad(ids, (0, pad)), F.pad(mask, (0, pad))
        return Contender(module, lambda: module(images(), *given))

    work = flops.stage1_work(config, size.image_tokens, ids.shape[1], len(lengths))
    total = sum(part.trained for part in work.values()) + encoder_flops(size)
    make = {"ours": ours} | with_torchs_products(args, ours) | {"reference": theirs}
    return Case(name, len(lengths), total / 1e9, make)


def _stage1(args: Any, config: Stage1Config) -> Stage1:
    torch.manual_seed(0)
    with made_as(args):
        return Stage1(config).train()
