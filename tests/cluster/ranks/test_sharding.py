"""A frozen language model whose weights two ranks share: the same loss and gradient."""

import json

import pytest
import torch
from torch import nn

from cluster.ranks.sharding import blocks, shard_frozen
from tests.modeling import tiny_language
from tests.run_ranks import run_ranks


def test_two_ranks_hold_half_of_the_blocks_and_compute_the_same():
    for found in json.loads(
        run_ranks("tests.cluster.ranks.sharding_worker", 2).splitlines()[-1]
    ).values():
        assert abs(found["loss"]) < 1e-6 and found["gradient"] < 1e-4  # of its norm
        assert found["held"] < 0.75  # half of the blocks; embeddings and head stay whole


def test_blocks_are_the_outermost_ones():
    assert len(blocks(tiny_language.t5())) == 4 and len(blocks(tiny_language.opt())) == 2
    with pytest.raises(ValueError, match="Linear has no list of blocks"):
        blocks(nn.Linear(2, 2))


def test_what_trains_is_not_sharded():
    with pytest.raises(ValueError, match="only a frozen model"):
        shard_frozen(tiny_language.opt(), torch.device("cpu"))
