"""Stage 1 beside the reference's algorithm, built from Hugging Face's parts:
four Q-Former passes, image keys and values recomputed in each, text padded to the full length.

Equal on one rank. On several, ITG is the one difference: a mean over all tokens here, a mean of the
ranks' means there.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.benchmarks.reference import Reference, give_weights, retrieval_model, their_parameters
from modeling.blip2 import Stage1
from tests.modeling.test_qformer import huggingface_retrieval, ours_from
from tests.modeling.tiny import VOCAB, batch, sharp_stage1, sharpen, stage1_config

FULL, DEC = 12, VOCAB - 1


def most_likely(weights: Tensor, count: int) -> Tensor:
    return weights.argmax(-1, keepdim=True)


@pytest.fixture(scope="module")
def both() -> tuple[Reference, Stage1]:
    theirs = huggingface_retrieval()
    reference, ours = Reference(theirs, DEC).eval(), ours_from(theirs)
    sharpen(reference.head, seed=9)
    with torch.no_grad():
        for name, parameter in their_parameters(ours, reference).items():
            ours.get_parameter(name).copy_(parameter)
    return reference, ours


@pytest.mark.parametrize("size", [2, 5])
def test_losses_and_gradients_are_the_references(both, size, monkeypatch):
    monkeypatch.setattr(torch, "multinomial", most_likely)
    reference, ours = (model.double() for model in both)
    tokens, ids, mask = batch(size, seed=size)
    tokens = tokens.double()
    for model in (reference, ours):
        model.zero_grad()
    pad = FULL - ids.shape[1]  # the reference pads to the full length
    expected = reference(tokens, F.pad(ids, (0, pad)), F.pad(mask, (0, pad)))
    found = ours(tokens, ids, mask)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-5), name
    expected["loss"].backward()
    found["loss"].backward()
    pairs = their_parameters(ours, reference)
    for name, parameter in ours.named_parameters():
        gradient = pairs[name].grad
        gap = (parameter.grad.reshape(gradient.shape) - gradient).norm()
        assert gap / gradient.norm().clamp(min=1e-6) < 1e-5, name


def test_itg_weighs_tokens_alike_where_the_reference_weighs_ranks(both):
    """Two ranks' samples: ITG of one does not depend on the other's, so no process is needed."""
    reference, ours = (model.double() for model in both)
    tokens, ids, mask = batch(4, seed=4)
    order = mask.sum(1).argsort()  # the short texts on the first rank, the long ones on the second
    tokens, ids, mask = tokens[order].double(), ids[order], mask[order]
    means, counts = [], []
    for rank in (slice(0, 2), slice(2, 4)):
        means.append(reference(tokens[rank], ids[rank], mask[rank])["itg"].item())
        counts.append(mask[rank, 1:].sum().item())
    assert counts[0] < counts[1]
    found = ours(tokens, ids, mask)["itg"].item()
    weighted = sum(m * n for m, n in zip(means, counts, strict=True)) / sum(counts)
    assert found == pytest.approx(weighted, rel=1e-5)
    assert found != pytest.approx(sum(means) / 2, rel=1e-4)


def test_the_benchmarks_reference_takes_a_stages_weights(monkeypatch):
    """As the benchmark builds it: Hugging Face's model from our sizes, our weights into it."""
    monkeypatch.setattr(torch, "multinomial", most_likely)
    ours = sharp_stage1()
    reference = Reference(retrieval_model(stage1_config()), DEC)
    give_weights(ours, reference)
    inputs = batch(3)
    expected, found = reference(*inputs), ours(*inputs)
    assert all(
        found[name].item() == pytest.approx(expected[name].item(), rel=1e-4) for name in found
    )
