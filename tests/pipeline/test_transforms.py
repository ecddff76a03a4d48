import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import transforms
from pipeline.images import decode
from pipeline.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    TrainTransform,
    TransformConfig,
    eval_transform,
    train_transform,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_eval_squashes_and_normalises():
    image = torch.zeros(3, 10, 20, dtype=torch.uint8)
    image[0] = 255
    out = eval_transform(8)(image)
    assert out.shape == (3, 8, 8) and out.dtype == torch.float32
    for channel, value in enumerate((1.0, 0.0, 0.0)):
        wanted = (value - CLIP_MEAN[channel]) / CLIP_STD[channel]
        assert torch.allclose(out[channel], torch.full((8, 8), wanted), atol=1e-5)


def test_train_is_a_function_of_the_generator():
    image = torch.randint(0, 255, (3, 40, 60), dtype=torch.uint8, generator=generator())
    transform = train_transform(16)
    assert torch.equal(transform(image, generator(1)), transform(image, generator(1)))
    assert not torch.equal(transform(image, generator(1)), transform(image, generator(2)))


def test_flip_share_and_refusal():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, :, :4] = 255
    transform = TrainTransform(TransformConfig(size=8, scale=(1, 1), ratio=(1, 1)))
    flipped = [bool(transform(image, generator(seed))[0, 0, -1] > 0) for seed in range(400)]
    assert 160 < sum(flipped) < 240
    kept = [bool(transform(image, generator(seed), False)[0, 0, -1] > 0) for seed in range(50)]
    assert not any(kept)


def test_crops_within_bounds():
    transform = TrainTransform(TransformConfig(size=8))
    gen = generator()
    areas = []
    for _ in range(2000):
        draws = torch.rand(5, generator=gen, dtype=torch.float64).tolist()
        top, left, height, width = transform._crop(100, 140, draws)
        assert 0 <= top <= 100 - height and 0 <= left <= 140 - width
        areas.append(height * width / 14_000)
    assert 0.45 < min(areas) < 0.52 and max(areas) > 0.93


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_extreme_shapes(size):
    image = torch.zeros(3, *size, dtype=torch.uint8)
    assert train_transform(8)(image, generator()).shape == (3, 8, 8)


def test_bad_config():
    with pytest.raises(ValueError, match=r"transform\.scale"):
        TransformConfig(scale=(0.9, 0.5))
    with pytest.raises(ValueError, match=r"transform\.flip"):
        TransformConfig(flip=2)


def picture(width: int, height: int, form: str = "JPEG") -> bytes:
    """A smooth random picture."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 96, width // 96, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(out, form)
    return out.getvalue()


@pytest.fixture
def decoded(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the images that were decoded, in order."""
    shapes = []

    def noted(image, **options):
        shapes.append(decode(image, **options).shape)
        return decode(image, **options)

    monkeypatch.setattr(transforms, "decode", noted)
    return shapes


def test_a_file_is_decoded_whole_unless_draft_is_asked_for(decoded):
    image = picture(1280, 960)
    for seed in range(3):
        plain = train_transform(32)
        assert torch.equal(
            plain.of_file(image, generator(seed)), plain(decode(image), generator(seed))
        )
    assert set(decoded) == {(3, 960, 1280)}


def test_draft_decodes_what_the_square_needs_and_hardly_changes_it(decoded):
    whole, draft = (TrainTransform(TransformConfig(size=200, draft=on)) for on in (False, True))
    image = picture(1920, 1440)
    for seed in range(20):
        one, other = (change.of_file(image, generator(seed)) for change in (whole, draft))
        # The crop lies on the pixels of the smaller image: it is moved by up to half of one.
        assert (one.float() - other.float()).abs().mean() < 4
    assert {shape[1:] for shape in decoded} == {(1440, 1920), (360, 480)}  # 1018 px and more: 1/4
    squash = TransformConfig(size=180, scale=(1, 1), ratio=(1, 1), draft=True)
    other = TrainTransform(squash).of_file(image, generator())
    assert decoded[-1][1:] == (180, 240)
    one = TrainTransform(replace(squash, draft=False)).of_file(image, generator())
    assert (one.float() - other.float()).abs().mean() < 1


@pytest.mark.parametrize(("width", "height", "form"), [(320, 256, "JPEG"), (640, 640, "PNG")])
def test_draft_changes_nothing_where_it_cannot_help(width, height, form):
    image = picture(width, height, form)
    for seed in range(5):
        whole, draft = (TrainTransform(TransformConfig(size=224, draft=on)) for on in (False, True))
        assert torch.equal(
            whole.of_file(image, generator(seed)), draft.of_file(image, generator(seed))
        )
