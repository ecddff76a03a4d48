"""LLaVA's squares against the image processors of transformers, pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, LlavaImageProcessor

from pipeline.images import pixels as read
from pipeline.pixels import CLIP_MEAN, CLIP_STD, PixelConfig, fit_square
from pipeline.transforms import TrainTransform, TransformConfig

SIZES = [(300, 200), (201, 333), (64, 64), (90, 640), (31, 30), (224, 225)]


@pytest.mark.parametrize("geometry", ["crop", "pad"])
@pytest.mark.parametrize("size", [56, 84])
def test_squares_are_those_of_transformers(geometry, size):
    own = PixelConfig(CLIP_MEAN, CLIP_STD, "bicubic", geometry, 0, "torch")
    whole = TransformConfig(size=size, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, whole="own")
    train = TrainTransform(whole, own)
    kind = LlavaImageProcessor if geometry == "pad" else CLIPImageProcessor
    more = {"do_pad": True} if geometry == "pad" else {}
    theirs = kind(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        do_rescale=False,
        do_normalize=False,
        **more,
    )
    for seed, (height, width) in enumerate(SIZES):
        noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
        picture = Image.fromarray(noise)
        expected = theirs(picture, return_tensors="pt")["pixel_values"][0]
        image = read(picture)
        found = fit_square(image, size, own)
        # Of an image of more than 4 : 1 the centre alone is computed, to one level (images.py).
        thin = geometry == "crop" and max(height, width) > 4 * min(height, width)
        assert (found.int() - expected.int()).abs().max() <= thin, (height, width)
        assert found.dtype == torch.uint8
        assert torch.equal(train(image, torch.Generator().manual_seed(seed)), found)


def test_an_image_of_one_line_is_padded_in_little_memory():
    own = PixelConfig(CLIP_MEAN, CLIP_STD, "bicubic", "pad", 0, "torch")
    line = torch.full((3, 1, 60_000), 200, dtype=torch.uint8)
    square = fit_square(line, 28, own)
    assert square.shape == (3, 28, 28) and square[:, 0, 0].tolist() == [122, 116, 104]
    assert (square == 200).any()


def test_the_own_geometry_excludes_random_crops():
    with pytest.raises(ValueError, match=r"transform\.scale 1 1"):
        TransformConfig(whole="own")
