"""Two and four gloo ranks against one on the joined batch: losses, gradients, what travels."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from modeling import contrast, gather
from tests.modeling.tiny import accumulated, batch, sharp_stage1
from tests.run_ranks import free_port

WORLDS = [2, 4]
# Samples 0, 4 and 7 show the same image, and they live on different ranks.
IMAGE_IDS = torch.tensor([7, 1, 2, 3, 7, 4, 5, 7])


def most_likely(weights: Tensor, count: int) -> Tensor:
    return weights.argmax(-1, keepdim=True)


def joined(case: str, ranks: int) -> tuple[Tensor, ...]:
    """Inputs of all ranks together; the first rank's texts are the shorter ones."""
    if case == "one sample a rank":
        return batch(ranks)
    tokens, ids, mask = batch(8, length=9)
    mask[:2, 6:], ids[:2, 6:] = 0, 0
    return (tokens, ids, mask, IMAGE_IDS) if case == "image ids" else (tokens, ids, mask)


CASES = ["plain", "image ids", "one sample a rank"]


def in_turn(inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """As `losses_and_gradients`, a sample at a time."""
    pairs = [
        contrast.Pairs(lambda t=tokens: t[None], ids[None], mask[None], None, None, lambda: None)
        for tokens, ids, mask in zip(*inputs, strict=True)
    ]
    return accumulated(sharp_stage1(), pairs)


def token_gradient(inputs: tuple[Tensor, ...]) -> Tensor:
    """What an encoder that trains gets: from its images, and as others' negatives."""
    tokens = inputs[0].requires_grad_()
    sharp_stage1()(tokens, *inputs[1:])["loss"].backward()
    return tokens.grad


def losses_and_gradients(inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    model = sharp_stage1()
    losses = model(*inputs)
    losses["loss"].backward()
    gradients = {f"grad.{name}": p.grad for name, p in model.named_parameters()}
    return {name: tensor.detach() for name, tensor in {**losses, **gradients}.items()}


def one_rank(rank: int, ranks: int, port: int, folder: str) -> None:
    """Everything that is asked of some ranks, in one start of the processes."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    torch.multinomial = most_likely
    result = {}
    for case in CASES:
        tensors = losses_and_gradients(own_part(joined(case, ranks), rank, ranks))
        mean = {f"{case}/{name}": gather.world_sum(t) / ranks for name, t in tensors.items()}
        result.update(mean)
        token_grad = token_gradient(own_part(joined(case, ranks), rank, ranks))
        result[f"{case}/tokens"] = gather.gather(token_grad) / ranks
    turns = in_turn(own_part(joined("plain", ranks), rank, ranks))
    result.update({f"in turn/{k}": gather.world_sum(t) / ranks for k, t in turns.items()})
    if ranks == 2:
        result.update(fetched(rank))
    with pytest.raises(ValueError, match=f"from 2 to {1 + ranks} samples"):
        sharp_stage1()(*batch(2 + rank))
    if rank == 0:
        torch.save(result, Path(folder) / "result.pt")
    dist.destroy_process_group()


def own_part(inputs: tuple[Tensor, ...], rank: int, ranks: int) -> tuple[Tensor, ...]:
    size = inputs[0].shape[0] // ranks
    tokens, ids, mask, *more = (tensor[rank * size : (rank + 1) * size] for tensor in inputs)
    longest = int(mask.sum(1).max())  # each rank pads to its own longest text
    return tokens, ids[:, :longest], mask[:, :longest], *more


def fetched(rank: int) -> dict[str, Tensor]:
    sent: list[int] = []
    exchange = dist.all_to_all_single

    def counted(output, given, *sizes):
        sent.append(given.numel() * given.element_size())
        return exchange(output, given, *sizes)

    dist.all_to_all_single = counted
    world = torch.arange(6.0)[:, None, None].expand(6, 4, 8).bfloat16()
    chosen = torch.tensor([[5, 1, 3], [4, 0, 5]])[rank]  # rank 0 lacks 5 and 3, rank 1 lacks 0
    asked = gather.ask(chosen, 3)
    received, rows = asked.bring(world[rank * 3 : rank * 3 + 3]), asked.row_B
    dist.all_to_all_single = exchange
    found = torch.cat((world[rank * 3 : rank * 3 + 3], received))[rows]
    return {
        "found": gather.gather(found[:, 0, 0].contiguous()),
        "received": gather.gather(torch.tensor([received.shape[0]])),
        "bytes": gather.gather(torch.tensor(sent)),
    }


@pytest.fixture(scope="module", params=WORLDS, ids="{} ranks".format)
def world(request, tmp_path_factory) -> tuple[int, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(one_rank, (request.param, free_port(), str(folder)), nprocs=request.param)
    return request.param, torch.load(folder / "result.pt", weights_only=True)


@pytest.mark.parametrize("case", [*CASES, "in turn"])
def test_ranks_equal_one_rank_on_the_joined_batch(world, monkeypatch, case):
    """In one batch a rank, and sample by sample."""
    monkeypatch.setattr(torch, "multinomial", most_likely)
    ranks, measured = world
    expected = losses_and_gradients(joined("plain" if case == "in turn" else case, ranks))
    assert len(expected) > 100
    for name, tensor in expected.items():
        found = measured[f"{case}/{name}"]
        assert torch.allclose(found, tensor, atol=2e-6, rtol=1e-4), name


@pytest.mark.parametrize("case", CASES)
def test_an_encoder_that_trains_gets_the_joined_batchs_gradient(world, monkeypatch, case):
    monkeypatch.setattr(torch, "multinomial", most_likely)
    ranks, measured = world
    expected = token_gradient(joined(case, ranks))
    assert torch.allclose(measured[f"{case}/tokens"], expected, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("world", [2], indirect=True, ids="{} ranks".format)
def test_only_the_chosen_negatives_travel(world):
    _, measured = world
    assert measured["found"].tolist() == [5, 1, 3, 4, 0, 5]
    assert measured["received"].tolist() == [2, 1]
    token_bytes = 4 * 8 * 2
    assert measured["bytes"].tolist() == [1 * token_bytes, 2 * token_bytes]


def test_one_process_needs_no_group():
    tokens = torch.randn(3, 2, 4, requires_grad=True)
    assert not gather.gather(tokens).requires_grad
    asked = gather.ask(torch.tensor([2, 0, 1]), 3)
    received, rows = asked.bring(tokens), asked.row_B
    assert received.shape == (0, 2, 4) and rows.tolist() == [2, 0, 1]
    assert gather.world_mean(torch.tensor(6.0), torch.tensor(3)).item() == 2
