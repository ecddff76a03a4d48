"""A step never waits for the device.

On the meta device there are no values: `.item()`, `.tolist()`, copies to the CPU and shapes that
depend on values (boolean indexing, `nonzero`) raise. A forward and backward pass that runs there
asks for nothing. Branches for CUDA are run forward on a CUDA device that torch makes believe.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode

from modeling import gather
from modeling.blip2 import Stage1, Stage2, Stage2Config
from modeling.language.adapters import DecoderLM, EncoderDecoderLM
from modeling.qformer import QFormer
from tests.modeling import tiny_language as tiny
from tests.modeling.tiny import batch, qformer_config, stage1_config

reads_masks = pytest.mark.xfail(
    TorchVersion(transformers.__version__) < "5.23",
    raises=RuntimeError,
    reason="transformers 5.17 itself looks whether a mask is all ones",
)
TEXTS = ["w1 w2 w3", "w4", "w5 w6", "w7"]


class Copies(TorchDispatchMode):
    """Counts the operators that read from CUDA and write to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        read, written = (
            {leaf.device.type for leaf in torch.utils._pytree.tree_leaves(tree)
             if isinstance(leaf, torch.Tensor)}
            for tree in ((args, kwargs), out)
        )  # fmt: skip
        if "cuda" in read and "cpu" in written:
            self.seen.append(str(func))
        return out


@pytest.mark.parametrize("image_ids", [False, True])
def test_stage1_asks_for_no_value(image_ids):
    with torch.device("meta"):
        model = Stage1(stage1_config(dropout=0.1))
    inputs = [tensor.to("meta") for tensor in batch(4)]
    extra = [torch.arange(4, device="meta")] if image_ids else []
    model(*inputs, *extra)["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "family", "template"),
    [
        pytest.param(tiny.opt, DecoderLM, "<s> $A", marks=reads_masks),
        (tiny.t5, EncoderDecoderLM, "$A </s>"),
    ],
)
def test_stage2_and_its_language_model_ask_for_no_value(make, family, template):
    with torch.device("meta"):
        model, stage = make(), Stage2(Stage2Config(qformer_config(text=False), tiny.WIDTH))
    language = family(model, tiny.tokenizer(template))
    language.loss(stage(batch(4)[0].to("meta")), TEXTS).backward()
    assert all(p.grad is not None for p in stage.parameters())


@pytest.fixture
def two_ranks() -> Iterator[None]:
    """A group whose collectives do nothing: shapes are right, values are not looked at."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("two_ranks")
def test_ranks_wait_for_nothing_but_counts_that_left_before_the_generative_loss(monkeypatch):
    """How many tokens to send must be known: it is asked for behind nothing that takes long."""
    order: list[str] = []

    def on_its_way(counts):
        assert counts.device.type == "meta" and counts.shape == (3, 2)
        order.append("asked")
        return lambda: order.append("waited") or ([0, 3], [0, 2], [2, 2])

    decode = QFormer.decode
    monkeypatch.setattr(gather, "common_text_length", lambda batch, length, device: length)
    monkeypatch.setattr(gather, "_on_its_way", on_its_way)
    monkeypatch.setattr(QFormer, "decode", lambda *a: order.append("decoded") or decode(*a))
    with torch.device("meta"):
        model = Stage1(stage1_config(dropout=0.1))
    model(*(tensor.to("meta") for tensor in batch(4)))["loss"].backward()
    assert order == ["asked", "decoded", "waited"]
    assert all(p.grad is not None for p in model.parameters())


def test_stage1_on_cuda_copies_nothing_back():
    with FakeTensorMode(), Copies() as copies:
        with torch.device("cuda"):
            model = Stage1(stage1_config(dropout=0.1))
            tokens, ids = torch.empty(4, 5, 24), torch.empty(4, 7, dtype=torch.long)
        loss = model(tokens, ids, ids)["loss"]
    assert loss.device.type == "cuda" and not copies.seen


@pytest.mark.parametrize(
    "sync",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: bool(x.all()),
    ],
)
def test_a_sync_would_be_seen(sync):
    with pytest.raises((RuntimeError, NotImplementedError)):
        sync(torch.empty(3, device="meta"))
