"""A device whose memory is short: the real models refused by the allocator, and nothing changes."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from jobs.captioning.models import Describer
from jobs.recipes.capfilt import CapFiltRecipe
from modeling.captioning.captioner import Captioner
from modeling.captioning.clip_scorer import ClipScorer
from pipeline.capfilt.describe import Described, ModelInput
from tests.tiny_models import save_captioner, save_clip

COUNT = 13


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> CapFiltRecipe:
    folder = tmp_path_factory.mktemp("models")
    captioner, ranker = save_captioner(folder / "captioner"), save_clip(folder / "clip")
    return CapFiltRecipe(str(captioner), str(ranker), batch_size=8, dtype="fp32")


@pytest.fixture(scope="module")
def shard() -> ModelInput:
    """Two batches, the second of five samples; one has human captions."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (COUNT, 3, 32, 32), dtype=np.uint8)
    texts = [(f"a red circle {number}",) for number in range(COUNT)]
    uids = [f"{number:032x}" for number in range(COUNT)]
    return ModelInput(uids, texts, [number == 3 for number in range(COUNT)], pixels, pixels)


@pytest.fixture(scope="module")
def undisturbed(recipe: CapFiltRecipe, shard: ModelInput) -> Described:
    described = Describer(recipe).process(shard)
    assert described is not None and described.short == {}
    return described


def refuse(patch: pytest.MonkeyPatch, model: type, method: str, room: int) -> list[int]:
    """The allocator gives a model's method no memory for more than ``room`` images."""
    original, sizes = getattr(model, method), []

    def asked(self: object, images: torch.Tensor, *more: object) -> object:
        sizes.append(len(images))
        if len(images) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return original(self, images, *more)

    patch.setattr(model, method, asked)
    return sizes


def texts_of(described: Described) -> list[list[tuple[str, str]]]:
    return [[(c.text, c.origin) for c in row] for row in described.candidates]


def scores_of(described: Described) -> list[float]:
    return [c.score for row in described.candidates for c in row]


@pytest.mark.parametrize("sizes", [[8, 4, 4, 4, 4], [8, 4, *[2] * 8], [8, 4, 2, *[1] * 16]])
def test_captions_and_scores_are_those_of_whole_batches(
    recipe: CapFiltRecipe,
    shard: ModelInput,
    undisturbed: Described,
    monkeypatch: pytest.MonkeyPatch,
    sizes: list[int],
):
    asked = refuse(monkeypatch, Captioner, "_image_caches", sizes[-1])
    describer = Describer(recipe)
    described = describer.process(shard)
    assert described is not None and asked == sizes
    assert described.short == {"captioner": sizes[-1]}
    assert texts_of(described) == texts_of(undisturbed)
    assert scores_of(described) == scores_of(undisturbed)  # the scorer had its whole batches
    asked.clear()
    again = describer.process(shard)  # what was short once is not tried again
    assert again is not None and set(asked) == {sizes[-1]}
    assert texts_of(again) == texts_of(undisturbed)


def test_a_scorer_short_of_memory_gives_the_same_scores(
    recipe: CapFiltRecipe,
    shard: ModelInput,
    undisturbed: Described,
    monkeypatch: pytest.MonkeyPatch,
):
    refuse(monkeypatch, ClipScorer, "image_embeds", 2)
    described = Describer(recipe).process(shard)
    assert described is not None and described.short == {"scorer": 2}
    assert texts_of(described) == texts_of(undisturbed)
    assert scores_of(described) == pytest.approx(scores_of(undisturbed), abs=1e-6)


def test_odd_batches_are_filled_up_and_parts_have_one_shape(
    recipe: CapFiltRecipe,
    shard: ModelInput,
    undisturbed: Described,
    monkeypatch: pytest.MonkeyPatch,
):
    asked = refuse(monkeypatch, Captioner, "_image_caches", 5)
    describer = Describer(recipe)
    describer.batch_size = 9
    described = describer.process(shard)
    assert described is not None and asked == [9, 5, 5, 5, 5]
    assert texts_of(described) == texts_of(undisturbed)


def test_a_device_too_small_for_one_image_is_one_clear_error(
    recipe: CapFiltRecipe, shard: ModelInput, monkeypatch: pytest.MonkeyPatch
):
    refuse(monkeypatch, Captioner, "_image_caches", 0)
    with pytest.raises(ValueError, match="does not hold one image at a time: take"):
        Describer(recipe).process(shard)


def test_other_errors_are_not_taken_for_it(
    recipe: CapFiltRecipe, shard: ModelInput, monkeypatch: pytest.MonkeyPatch
):
    def broken(self: object, images: torch.Tensor, uids: Sequence[str]) -> object:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Captioner, "generate", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        Describer(recipe).process(shard)
