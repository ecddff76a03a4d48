"""Decoding: exact colours for every mode, a reason for everything that is not an image."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.malloc import keep_memory
from pipeline.images import ImageError, decode, read_header, resize, resize_square


def encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def pixel(image: bytes) -> list[int]:
    decoded = decode(image)
    assert decoded.dtype == torch.uint8 and decoded.shape[0] == 3
    return decoded[:, 0, 0].tolist()


def test_alpha_goes_over_white():
    assert pixel(encode(Image.new("RGBA", (2, 3), (10, 20, 30, 255)))) == [10, 20, 30]
    assert pixel(encode(Image.new("RGBA", (2, 3), (10, 20, 30, 0)))) == [255, 255, 255]
    # 0.4 of black over white: 255 * 0.6 = 153
    assert pixel(encode(Image.new("RGBA", (2, 3), (0, 0, 0, 102)))) == [153, 153, 153]
    assert pixel(encode(Image.new("LA", (2, 3), (7, 0)))) == [255, 255, 255]


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert pixel(encode(image)) == [200, 100, 50]
    assert pixel(encode(image, transparency=1)) == [255, 255, 255]


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = Image.fromarray(np.full((3, 2), 257 * 100, dtype=np.uint16))
    assert pixel(encode(grey)) == [100, 100, 100]
    assert pixel(encode(grey, "TIFF")) == [100, 100, 100]


def test_cmyk_bilevel_and_animation():
    assert pixel(encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")) == [255, 255, 255]
    assert pixel(encode(Image.new("1", (2, 2), 1))) == [255, 255, 255]
    red, blue = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    animated = encode(red, "GIF", save_all=True, append_images=[blue])
    assert pixel(animated) == [255, 0, 0]


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_image"),
        (b"<!DOCTYPE html><html></html>", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
        (png_claiming(60_000, 60_000), "too_many_pixels"),
        (png_claiming(10_000, 10_000), "too_many_pixels"),
    ],
)
def test_what_is_no_image_has_a_reason(data: bytes, reason: str):
    with pytest.raises(ImageError) as refused:
        decode(data)
    assert refused.value.reason == reason
    with pytest.raises(ValueError):
        read_header(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_files_are_named(form: str):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), form)
    with pytest.raises(ImageError) as refused:
        decode(data[: len(data) // 2])
    assert refused.value.reason in {"truncated_image", "undecodable_image", "not_an_image"}


def test_a_smaller_limit_refuses_from_the_header():
    data = encode(Image.new("RGB", (100, 50)))
    assert (read_header(data).width, read_header(data).height) == (100, 50)
    with pytest.raises(ImageError, match="100 x 50"):
        decode(data, max_pixels=4_999)


def test_resize_squashes_or_crops_the_centre():
    image = torch.zeros(3, 10, 30, dtype=torch.uint8)
    image[:, :, 10:20] = 200
    assert resize_square(image, 10).shape == (3, 10, 10)
    cropped = resize_square(image, 10, crop=True)
    assert cropped.shape == (3, 10, 10) and (cropped == 200).all()
    assert resize_square(image[:, :, :10], 10) is not None
    assert resize_square(torch.zeros(3, 1, 900, dtype=torch.uint8), 8, crop=True).shape == (3, 8, 8)


@pytest.mark.parametrize("size", [(40, 60), (300, 500), (1, 7), (7, 1), (1, 1)])
def test_resize_gives_the_same_pixels_however_the_image_lies(size: tuple[int, int]):
    keep_memory()  # a change of where memory comes from, not of what is in it
    rows = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
    image, planes = rows.permute(2, 0, 1), rows.permute(2, 0, 1).contiguous()
    assert torch.equal(resize(image, 32, 24), resize(planes, 32, 24))
    if min(size) > 1:
        assert torch.equal(resize(image[:, :-1, 1:], 9, 9), resize(planes[:, :-1, 1:], 9, 9))
    assert torch.equal(resize_square(image, 32), resize_square(planes, 32))
    assert resize_square(image, 32).is_contiguous()
