"""Replayed steps: the same captions whatever comes between, from the same memory.

No GPU is needed: ``again`` below runs the recorded function on its own inputs, as a graph does, and
puts what comes out where it first came out.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, BlipForConditionalGeneration

from modeling.captioning.captioner import Captioner
from modeling.captioning.cuda_graphs import Steps
from modeling.captioning.sampling import SamplingConfig
from tests.tiny_models import save_captioner

SAMPLING = SamplingConfig(captions=3, max_length=16)


class Recorder:
    """Stands in for CUDA graphs."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.recorded += 1
        result = function()

        def again() -> None:
            self.replayed += 1
            result.copy_(function())

        return again, result.fill_(torch.nan)  # a recording computes nothing yet


def test_captions_are_those_of_plain_steps(tmp_path):
    folder = save_captioner(tmp_path)
    model = BlipForConditionalGeneration.from_pretrained(folder).eval()
    given = (model, AutoTokenizer.from_pretrained(folder), SAMPLING, (0.5,) * 3, (0.3,) * 3)
    record = Recorder()
    plain, replayed = Captioner(*given), Captioner(*given, steps=Steps(record))
    generator = torch.Generator().manual_seed(1)
    for batch in (4, 4, 4, 2, 2, 4):  # the halves of one that did not fit come between
        images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, generator=generator)
        uids = [f"{i + 10 * record.replayed:032x}" for i in range(batch)]
        assert torch.equal(replayed.generate(images, uids), plain.generate(images, uids))
    steps = SAMPLING.max_length - len(plain.prompt) - 1
    assert 0 < record.recorded <= 2 * steps  # of batches of 4, and of 2: each its own memory
    assert record.replayed > record.recorded  # the third batch of 4 is replayed only


def test_results_of_one_form_share_their_memory():
    steps = Steps(Recorder())
    made: list[Tensor] = []
    for step in range(4):
        for _ in range(2):  # plain, then recorded
            found = steps(step, lambda ids, at=step: ids + at, torch.ones(3))
            assert found.tolist() == [1.0 + step] * 3
        made.append(found)
    assert len({tensor.data_ptr() for tensor in made}) == 1
    assert steps(0, lambda ids: ids, torch.ones(3) * 5).tolist() == [5.0] * 3  # replayed


def test_what_cannot_be_recorded_runs_plainly():
    def refuse(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    steps = Steps(refuse)
    assert steps("a", torch.neg, torch.ones(1)) == -1
    with pytest.warns(UserWarning, match="without CUDA graphs .operation not permitted"):
        assert steps("a", torch.neg, torch.ones(1) * 2) == -2
    assert not steps.replays and steps("a", torch.neg, torch.ones(1) * 3) == -3


def test_out_of_memory_while_recording_is_not_hidden():
    def refuse(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        raise torch.OutOfMemoryError("no memory")

    steps = Steps(refuse)
    steps("a", torch.neg, torch.ones(1))
    with pytest.raises(torch.OutOfMemoryError):
        steps("a", torch.neg, torch.ones(1))
    assert steps.replays
