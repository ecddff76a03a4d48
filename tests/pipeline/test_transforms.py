import pytest
import torch

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
