"""CapFilt's models on a GPU: CUDA graphs, memory that is short, and the CPU's captions."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BlipForConditionalGeneration

from jobs.captioning.models import Describer
from jobs.recipes import recipe
from modeling.captioning.captioner import Captioner
from modeling.captioning.cuda_graphs import Steps
from modeling.captioning.sampling import SamplingConfig
from tests.gpu.needs import GPU, ON_GPU
from tests.tiny_models import save_captioner

pytestmark = ON_GPU
SAMPLING = SamplingConfig(captions=3, max_length=16)


def pictures(count: int, side: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def uids(count: int, start: int = 0) -> list[str]:
    return [f"{start + i:032x}" for i in range(count)]


def captioner(folder: Path, dtype: torch.dtype, steps: Steps | None = None) -> Captioner:
    model = BlipForConditionalGeneration.from_pretrained(folder, dtype=dtype).to(GPU)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Captioner(model, tokenizer, SAMPLING, (0.5,) * 3, (0.3,) * 3, steps=steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_graphs_give_the_captions_of_plain_steps(tmp_path, dtype):
    folder = save_captioner(tmp_path)
    replayed, plain = captioner(folder, dtype), captioner(folder, dtype, Steps())
    for turn, batch in enumerate((4, 4, 4, 2, 2, 4, 4, 4)):  # halves come between
        given = pictures(batch, 32, turn), uids(batch, 10 * turn)
        assert torch.equal(replayed.generate(*given), plain.generate(*given))
        assert replayed.steps.replays, "a step could not be recorded"
    assert replayed.steps._recorded and not plain.steps._recorded


@pytest.fixture(scope="module")
def describer() -> Describer:
    return Describer(recipe("capfilt", "tinyworld"))


def test_captions_are_those_of_the_cpu_in_fp32(describer, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = Describer(recipe("capfilt", "tinyworld"))
    images, names = pictures(16, 64), uids(16)
    mine, theirs = describer.captioner(images, names), on_cpu.captioner(images, names)
    equal = sum(
        a == b for m, t in zip(mine, theirs, strict=True) for a, b in zip(m, t, strict=True)
    )
    assert equal >= 0.95 * 16 * len(mine[0])  # a draw next to the border of two words may differ
    scores = describer.scorer(images, theirs)
    torch.testing.assert_close(
        torch.tensor(scores), torch.tensor(on_cpu.scorer(images, theirs)), rtol=1e-3, atol=1e-3
    )


def test_out_of_memory_goes_on_with_halves_and_the_same_captions(describer):
    halving, count = describer.captioner, 1024
    images, names = pictures(count, 64), uids(count)
    held = torch.cuda.memory_allocated()
    whole = halving(images, names)
    peak = torch.cuda.max_memory_allocated() - held
    assert halving.size == 0 and peak > 64 << 20
    halving.model.steps.clear()
    halving.model._caches = []
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    room = torch.cuda.memory_reserved() + int(0.7 * peak)
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        halved = halving(images, names)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 0 < halving.size < count
    rows = [(a, b) for m, t in zip(whole, halved, strict=True) for a, b in zip(m, t, strict=True)]
    equal = sum(a == b for a, b in rows)
    print(f"{equal} of {len(rows)} captions are equal at {halving.size} images at once")
    assert equal >= 0.995 * len(rows)  # kernels of another shape add in another order


def test_one_image_that_does_not_fit_is_one_clear_error(describer):
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    describer.captioner.model.steps.clear()
    describer.captioner.model._caches = []
    describer.captioner.size = 0
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() - 1) / total)
    try:
        with pytest.raises(ValueError, match="does not hold one image at a time"):
            describer.captioner(pictures(64, 64), uids(64))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        describer.captioner.size = 0
    assert len(describer.captioner(pictures(2, 64), uids(2))) == 2  # and it can still be used
