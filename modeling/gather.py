"""The collectives of the model, and the only file with them. Without a process group the world is
one rank.

Legend: B local batch, W world batch (B × ranks, rank-major), L text tokens, P image tokens, D
width, E embedding, R rows received.

A rank's loss is differentiated by its own samples only, and the average over ranks is then the
gradient of the joined batch (section 3.2 of the paper uses in-batch negatives over all GPUs).
Therefore nothing here carries a gradient, but for one thing: the tokens of an encoder that trains,
where another rank took them for a negative.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

# The name that stays; older versions of torch have the other one.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if _distributed() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if _distributed() else 0


def gather(local_B: Tensor) -> Tensor:
    """Concatenates every rank's tensor along dimension 0, detached; all ranks must bring the same
    shape.
    """
    local = local_B.detach()
    if world_size() == 1:
        return local
    parts = local.new_empty(world_size() * local.shape[0], *local.shape[1:])
    _all_gather(_bytes(parts), _bytes(local.contiguous()))
    return parts


def world_sum(value: Tensor) -> Tensor:
    """Sum of a tensor over ranks, detached."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def world_mean(total: Tensor, count: Tensor) -> Tensor:
    """A mean over the samples of all ranks as a loss of this one: averaged over ranks it is Σ
    total / Σ count.

    A plain local mean would weigh a token by how many others its rank happens to hold, so that the
    gradient would depend on the number of ranks.

    Args:
        total: Scalar with a gradient, the local sum.
        count: Scalar, how many terms are in it; at least one term must exist in the world.
    """
    return total * world_size() / world_sum(count.to(total.dtype)).clamp(min=1)


def common_text_length(batch: int, length: int, device: torch.device) -> int:
    """The longest text over all ranks, for padding before `gather`; no device waits for this where
    the group also has a CPU backend.

    Raises:
        ValueError: Ranks hold batches of different size (on every rank, instead of a hang or a
            wrong gather).
    """
    if world_size() == 1:
        return length
    on_cpu = "cpu:" in dist.get_backend_config()
    extremes = torch.tensor([length, batch, -batch], device="cpu" if on_cpu else device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    longest, most, least = extremes.tolist()
    if most != -least:
        raise ValueError(
            f"batch size differs between ranks: from {-least} to {most} samples. "
            "Contrastive losses need equal batches: drop the last incomplete batch on every rank."
        )
    return longest


@dataclass(frozen=True)
class Asked:
    """Image tokens that ranks want of each other, asked for and still to be brought.

    How many each rank sends decides the size of its message, which the host must know. It is on its
    way to the host when `ask` returns, so that who queues other work for the device before `bring`
    keeps the device busy meanwhile.

    Attributes:
        send_rows: Rows that this rank sends, by asker, behind them rows that nobody wants.
        row_B: For each choice its row in cat(own tokens, received).
        counts: Waits for the rows (sent to, received from) each rank.
    """

    send_rows: Tensor
    row_B: Tensor
    counts: Callable[[], tuple[list[int], list[int]]]

    def bring(self, tokens_SPD: Tensor) -> Tensor:
        """The tokens (R, P, D) that this rank wants and others have, R between 0 and B. Collective.

        Args:
            tokens_SPD: This rank's image tokens. Where they have a gradient (the encoder is
                finetuned), what is received has one too, and every rank must let it take part in
                its loss: its backward pass is a collective call.
        """
        if world_size() == 1:
            return tokens_SPD[:0].detach()
        counts = self.counts()
        send_rows = self.send_rows[: sum(counts[0])]
        if tokens_SPD.requires_grad:
            received: Tensor = _Exchanged.apply(tokens_SPD, send_rows, *counts)
            return received
        return _exchange(tokens_SPD[send_rows], *counts)


def ask(chosen_B: Tensor, size: int) -> Asked:
    """Tells the other ranks which of their images this one chose as negatives. Collective; nobody
    waits for the device.

    Args:
        chosen_B: World index of the negative image for each of this rank's texts.
        size: Images a rank has.
    """
    ranks, here = world_size(), rank()
    if ranks == 1:
        return Asked(chosen_B[:0], chosen_B, lambda: ([0], [0]))
    wanted_NB = gather(chosen_B[None])
    mine_NB = wanted_NB // size == here
    mine_NB[here] = False  # what this rank wants of its own stays where it is
    send_rows = (wanted_NB % size).flatten()[_first(mine_NB.flatten())]
    owner_B = chosen_B // size
    remote_B = owner_B != here
    # Received rows come by owner, and in the order of asking within an owner.
    by_owner_B = torch.argsort(owner_B.masked_fill(~remote_B, ranks), stable=True)
    row_B = torch.where(remote_B, size + by_owner_B.argsort(), chosen_B % size)
    owners_N1 = torch.arange(ranks, device=chosen_B.device)[:, None]
    received_N = ((owner_B == owners_N1) & remote_B).sum(1)
    return Asked(send_rows, row_B, _on_its_way(torch.stack((mine_NB.sum(1), received_N))))


def _first(true_K: Tensor) -> Tensor:
    """Indices that bring the true ones to the front, in their order: `nonzero` of a known size."""
    return torch.argsort(~true_K, stable=True)


def _on_its_way(counts_2N: Tensor) -> Callable[[], tuple[list[int], list[int]]]:
    """Starts copying to the host; who asks waits for the copy, not for what is queued after it."""
    if counts_2N.is_cuda:
        host = torch.empty(counts_2N.shape, dtype=counts_2N.dtype, pin_memory=True)
        host.copy_(counts_2N, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        wait = copied.synchronize
    else:
        host, wait = counts_2N, lambda: None

    def counts() -> tuple[list[int], list[int]]:
        wait()
        sends, receives = host.tolist()
        return sends, receives

    return counts


class _Exchanged(torch.autograd.Function):
    """The exchange of tokens that train: their gradients go back the way they came."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, tokens_BPD: Tensor, send_rows: Tensor, sends: list[int], receives: list[int]
    ) -> Tensor:
        ctx.save_for_backward(send_rows)
        ctx.shape, ctx.counts = tokens_BPD.shape, (sends, receives)
        return _exchange(tokens_BPD[send_rows], sends, receives)

    @staticmethod
    def backward(ctx, grad_RPD: Tensor):  # type: ignore[no-untyped-def]
        (send_rows,), (sends, receives) = ctx.saved_tensors, ctx.counts
        returned = _exchange(grad_RPD, receives, sends)
        grad_BPD = grad_RPD.new_zeros(ctx.shape).index_add_(0, send_rows, returned)
        return grad_BPD, None, None, None


def _exchange(send: Tensor, send_counts: list[int], receive_counts: list[int]) -> Tensor:
    received = send.new_empty(sum(receive_counts), *send.shape[1:])
    dist.all_to_all_single(
        _bytes(received),
        _bytes(send.contiguous()),
        _byte_counts(receive_counts, send),
        _byte_counts(send_counts, send),
    )
    return received


def _byte_counts(rows: list[int], like: Tensor) -> list[int]:
    row_bytes = like[0:0].element_size() * like.shape[1:].numel()
    return [count * row_bytes for count in rows]


def _bytes(tensor: Tensor) -> Tensor:
    # Bytes travel alike on every backend; gloo lacks some dtypes, bfloat16 among them.
    return tensor.view(-1).view(torch.uint8)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
