"""Bytes that a rank receives from the others, counted at the collectives."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from modeling import gather


def reference_exchange(tokens: Tensor) -> None:
    """The reference's messages for the negatives of image-text matching.

    They are every rank's normed image tokens to all others, and backward the sum of all gradients.
    """
    world = dist.get_world_size()
    everything = torch.empty(world * len(tokens), *tokens.shape[1:])
    if world > 1:
        gather._all_gather(everything, tokens)
        dist.all_reduce(everything)


class Counted:
    """Bytes that came from other ranks so far."""

    bytes = 0.0


@contextmanager
def received() -> Iterator[Counted]:
    """Inside, the bytes are counted that this rank receives.

    A sum brings a ring's share, a gather the others' parts, an exchange this rank's messages.
    """
    counted, world, rank = Counted(), dist.get_world_size(), dist.get_rank()
    whole, summed, exchanged = gather._all_gather, dist.all_reduce, dist.all_to_all_single

    def all_gather(out: Tensor, own: Tensor, *rest: Any, **named: Any) -> Any:
        counted.bytes += out.nbytes - own.nbytes
        return whole(out, own, *rest, **named)

    def all_reduce(tensor: Tensor, *rest: Any, **named: Any) -> Any:
        counted.bytes += 2 * (world - 1) / world * tensor.nbytes
        return summed(tensor, *rest, **named)

    def all_to_all(out: Tensor, own: Tensor, counts: list[int], *rest: Any, **named: Any) -> Any:
        counted.bytes += sum(counts) - counts[rank]
        return exchanged(out, own, counts, *rest, **named)

    with (
        mock.patch.object(gather, "_all_gather", all_gather),
        mock.patch.object(dist, "all_reduce", all_reduce),
        mock.patch.object(dist, "all_to_all_single", all_to_all),
    ):
        yield counted
