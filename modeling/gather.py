"""The collective calls of the model; no other file of `modeling` has any.

Without a process group there is one rank. A rank differentiates its loss by its own samples only;
the average over ranks is then the gradient of the joined batch (the paper's section 3.2 uses
in-batch negatives over all GPUs). Therefore nothing here carries a gradient, with one exception:
the tokens of an image encoder that trains, where another rank chose them as a negative.

Shapes: see `modeling`; S a rank's samples of the step, R images received, N ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

# The first name is torch's new one; older versions have only the second.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if _distributed() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if _distributed() else 0


def gather(local_B: Tensor) -> Tensor:
    """Concatenates the ranks' tensors along dimension 0, detached; all have the same shape."""
    local = local_B.detach()
    if world_size() == 1:
        return local
    parts = local.new_empty(world_size() * local.shape[0], *local.shape[1:])
    _all_gather(_bytes(parts), _bytes(local.contiguous()))
    return parts


def world_sum(value: Tensor) -> Tensor:
    """Sum of the ranks' tensors, detached."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def world_mean(total: Tensor, count: Tensor) -> Tensor:
    """This rank's share of a mean over all ranks: its average over ranks is Σ total / Σ count.

    A mean over the local tokens would instead weigh a token by how many others its rank happens to
    have, so that the gradient would depend on the number of ranks.

    Args:
        total: Scalar with a gradient, the local sum.
        count: Scalar, the number of terms in it; at least one rank must have a term.
    """
    return total * world_size() / world_sum(count.to(total.dtype)).clamp(min=1)


def common_text_length(batch: int, length: int, device: torch.device) -> int:
    """Length of the longest text of all ranks, for padding before `gather`.

    Where the process group also has a CPU backend, no device waits for this.

    Args:
        batch: Number of this rank's samples.
        length: Length of this rank's longest text.
        device: Device of the model.

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
    """Negative images that a batch lacks: they are asked for, and `bring` will fetch them.

    Their number decides the sizes of messages and tensors, so the host must know it. It is on its
    way to the host when `ask` returns; work that is queued between `ask` and `bring` keeps the
    device busy meanwhile.

    Attributes:
        row_B: Row of each chosen image in cat(the batch, the images from `bring`).
        send_rows: Rows that this rank sends, sorted by the rank that asked; behind them rows that
            no rank asked for.
        pick_B: Rows of cat(this rank's tokens, received tokens) that the batch lacks; behind them
            rows that it has. None where the batch is all that this rank has: then it lacks exactly
            the received ones.
        counts: Function that waits for three lists of numbers of rows: sent to each rank, received
            from each rank, and (repeated) lacked in all. None where the batch is the whole world
            and can lack nothing.
    """

    row_B: Tensor
    send_rows: Tensor
    pick_B: Tensor | None
    counts: Callable[[], list[list[int]]] | None

    def bring(self, tokens_SPD: Tensor) -> Tensor:
        """Tokens (R, P, D) of the images that the batch lacks, R between 0 and B. Collective.

        They are sorted by the world's batches and, within one, by the choices, so that the number
        of batches on a rank makes no difference.

        Args:
            tokens_SPD: This rank's image tokens. Where they have a gradient (the encoder is
                finetuned), the received ones have one too, and every rank must use them in its
                loss: their backward pass is a collective call.
        """
        received_RPD = tokens_SPD[:0].detach()
        if self.counts is None:
            return received_RPD
        sends, receives, lacked = self.counts()
        if world_size() > 1:
            send_rows = self.send_rows[: sum(sends)]
            if tokens_SPD.requires_grad:
                received_RPD = _Exchanged.apply(tokens_SPD, send_rows, sends, receives)
            else:
                received_RPD = _exchange(tokens_SPD[send_rows], sends, receives)
        if self.pick_B is None:
            return received_RPD
        return torch.cat((tokens_SPD, received_RPD))[self.pick_B[: lacked[0]]]


def ask(chosen_B: Tensor, size: int, start: int = 0) -> Asked:
    """Tells the other ranks which of their images a batch chose as negatives.

    Collective; the host does not wait for the device.

    Args:
        chosen_B: World index of the negative image for each text of the batch.
        size: Number of a rank's images, in one or more such batches.
        start: Index of the batch's first image among this rank's.
    """
    ranks, here, batch = world_size(), rank(), chosen_B.shape[0]
    if ranks == 1 and size == batch:
        return Asked(chosen_B, chosen_B[:0], None, None)
    batch_B, own_batch = chosen_B // batch, (here * size + start) // batch
    lacked_B = batch_B != own_batch
    order_B = _order(batch_B, lacked_B)
    row_B = torch.where(lacked_B, batch + order_B.argsort(), chosen_B % batch)

    owner_B = chosen_B // size
    remote_B = owner_B != here
    pick_B = None
    if size > batch:
        received_B = _order(owner_B, remote_B).argsort()  # received rows are sorted by owner
        pick_B = torch.where(remote_B, size + received_B, chosen_B % size)[order_B]

    wanted_NB = gather(chosen_B[None])
    mine_NB = wanted_NB // size == here
    mine_NB[here] = False  # this rank's own images need not be sent
    send_rows = (wanted_NB % size).flatten()[torch.argsort(~mine_NB.flatten(), stable=True)]
    owners_N1 = torch.arange(ranks, device=chosen_B.device)[:, None]
    received_N = ((owner_B == owners_N1) & remote_B).sum(1)
    counts_3N = torch.stack((mine_NB.sum(1), received_N, lacked_B.sum().expand(ranks)))
    return Asked(row_B, send_rows, pick_B, _on_its_way(counts_3N))


def _order(key_B: Tensor, wanted_B: Tensor) -> Tensor:
    """Indices that sort the wanted elements to the front by key; equal keys keep their order.

    `nonzero` would give the same, but in a size that the host had to wait for.
    """
    last = torch.iinfo(key_B.dtype).max
    return torch.argsort(key_B.masked_fill(~wanted_B, last), stable=True)


def _on_its_way(counts: Tensor) -> Callable[[], list[list[int]]]:
    """Starts a copy to the host; the returned function waits for it, not for work queued later."""
    if not counts.is_cuda:
        return counts.tolist
    host = torch.empty(counts.shape, dtype=counts.dtype, pin_memory=True)
    host.copy_(counts, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> list[list[int]]:
        copied.synchronize()
        return host.tolist()

    return wait


class _Exchanged(torch.autograd.Function):
    """An exchange of tokens with a gradient, which returns to the ranks that sent them."""

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
    # Every backend can send bytes; gloo lacks some number formats, bfloat16 among them.
    return tensor.view(-1).view(torch.uint8)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
