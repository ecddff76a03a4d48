"""Decoding: exact colours for every mode, a reason for everything that is not an image."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from cluster.malloc import keep_memory
from pipeline import images
from pipeline.images import ImageError, decode, pixels, read_header, resize, resize_square


def encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def pixel(image: bytes) -> list[int]:
    decoded = decode(image)
    assert decoded.dtype == torch.uint8 and decoded.shape[0] == 3
    return decoded[:, 0, 0].tolist()


def with_opaque_end(mode: str, first: object, last: object) -> Image.Image:
    """Three columns of one colour and a last one of another, which keeps alpha from being blank."""
    image = Image.new(mode, (4, 3), first)  # type: ignore[arg-type]
    image.paste(last, (3, 0, 4, 3))  # type: ignore[arg-type]
    return image


def test_alpha_goes_over_white():
    assert pixel(encode(Image.new("RGBA", (2, 3), (10, 20, 30, 255)))) == [10, 20, 30]
    clear = with_opaque_end("RGBA", (10, 20, 30, 0), (1, 2, 3, 255))
    assert pixel(encode(clear)) == [255, 255, 255]
    assert decode(encode(clear))[:, 0, 3].tolist() == [1, 2, 3]
    # 0.4 of black over white: 255 * 0.6 = 153
    assert pixel(encode(Image.new("RGBA", (2, 3), (0, 0, 0, 102)))) == [153, 153, 153]
    assert pixel(encode(with_opaque_end("LA", (7, 0), (9, 255)))) == [255, 255, 255]


def test_palette_with_and_without_transparency():
    image = with_opaque_end("P", 1, 0)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert pixel(encode(image)) == [200, 100, 50]
    assert pixel(encode(image, transparency=1)) == [255, 255, 255]


def bmp_with_blank_alpha() -> bytes:
    """2 x 2 in (200, 30, 40), its header with a mask for alpha, which is 0 in every pixel."""
    body = bytes([40, 30, 200, 0]) * 4
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    header = struct.pack("<IiiHHIIiiII", 108, 2, 2, 1, 32, 3, len(body), 2835, 2835, 0, 0) + masks
    start = struct.pack("<IHHI", 14 + len(header) + len(body), 0, 0, 14 + len(header))
    return b"BM" + start + header + body


@pytest.mark.parametrize("form", ["BMP", "PNG", "TIFF", "WEBP", "palette", "grey", "colour key"])
def test_a_picture_without_any_opaque_pixel_keeps_its_colours(form: str):
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 200, 30, 40])
    colour = Image.new("RGBA", (2, 2), (200, 30, 40, 0))
    data, expected = {
        "BMP": (bmp_with_blank_alpha(), [200, 30, 40]),
        "PNG": (encode(colour), [200, 30, 40]),
        "TIFF": (encode(colour, "TIFF"), [200, 30, 40]),
        "WEBP": (encode(colour, "WEBP", lossless=True, exact=True), [200, 30, 40]),
        "palette": (encode(palette, transparency=1), [200, 30, 40]),
        "grey": (encode(Image.new("LA", (2, 2), (7, 0))), [7, 7, 7]),
        "colour key": (
            encode(Image.new("RGB", (2, 2), (200, 30, 40)), transparency=(200, 30, 40)),
            [200, 30, 40],
        ),
    }[form]
    assert pixel(data) == expected


def png16(rows: np.ndarray, transparent: tuple[int, ...]) -> bytes:
    """A 16-bit PNG, grey (HW) or RGB (HW3), with a tRNS chunk."""
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    kind = 0 if rows.ndim == 2 else 2
    return png(
        struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 16, kind, 0, 0, 0),
        (b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)),
        (b"IDAT", zlib.compress(lines)),
    )


def test_the_transparent_colour_of_16_bits_is_white():
    grey = decode(png16(np.array([[25_700, 51_400, 25_701]]), (25_700,)))
    assert grey[0, 0].tolist() == [255, 200, 100]
    assert decode(png16(np.array([[25_700, 25_700]]), (25_700,)))[0, 0].tolist() == [100, 100]
    colours = np.array([[[25_700, 300, 0], [51_400, 300, 0]]])
    both = decode(png16(colours, (25_700, 300, 0))).permute(1, 2, 0)[0].tolist()
    assert both == [[255, 255, 255], [200, 1, 0]]


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = Image.fromarray(np.full((3, 2), 257 * 100, dtype=np.uint16))
    assert pixel(encode(grey)) == [100, 100, 100]
    assert pixel(encode(grey, "TIFF")) == [100, 100, 100]
    assert pixel(encode(Image.new("I;16B", (2, 2), 257 * 100), "TIFF")) == [100, 100, 100]


def test_twelve_bit_grey_is_scaled_by_its_own_white():
    """A TIFF of 2 x 1 by hand: 4095, its white, and 819, a fifth of it."""
    tags = ((256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 98), (278, 1))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<IH", 8, 7) + entries + bytes(4)
    assert len(data) == 98
    assert decode(data + bytes.fromhex("fff333"))[0, 0].tolist() == [255, 51]


def test_integers_of_32_bits_are_8_bit_grey_or_refused():
    assert pixel(encode(Image.fromarray(np.full((3, 2), 100, dtype=np.int32)), "TIFF")) == [100] * 3
    for values in ([[0, 256]], [[-1, 9]], [[0, 2**31 - 1]]):
        with pytest.raises(ImageError, match="unsupported_mode"):
            decode(encode(Image.fromarray(np.array(values, dtype=np.int32)), "TIFF"))
    with pytest.raises(ImageError, match="unsupported_mode"):
        decode(encode(Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"])
def test_modes_without_alpha_are_what_pillow_converts(mode: str):
    noise = np.random.default_rng(1).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    bands = len(Image.new(mode, (1, 1)).getbands())
    if mode == "1":
        image = Image.fromarray(noise[..., 0]).convert("1")
    elif mode == "P":
        image = Image.fromarray(noise[..., :3].copy()).quantize(8)
    else:
        image = Image.merge(mode, [Image.fromarray(noise[..., band]) for band in range(bands)])
    expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(pixels(image), expected)
    if mode == "CMYK":  # as Adobe's JPEGs have it, inverted
        assert torch.equal(decode(encode(image, "TIFF")), expected)


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("La", (7, 255)), ("RGBa", (9, 8, 7, 255)), ("LA", (7, 255)), ("RGBA", (9, 8, 7, 255))],
)
def test_opaque_modes_with_alpha_are_their_colours(mode: str, colour: tuple[int, ...]):
    grey = len(colour) == 2
    image = Image.new(mode.upper(), (2, 2), colour).convert(mode)
    assert pixels(image)[:, 0, 0].tolist() == (list(colour[:1]) * 3 if grey else list(colour[:3]))


def test_cmyk_bilevel_and_animation():
    assert pixel(encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")) == [255, 255, 255]
    assert pixel(encode(Image.new("1", (2, 2), 1))) == [255, 255, 255]
    red, blue = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    for form in ("GIF", "PNG", "TIFF"):
        assert pixel(encode(red, form, save_all=True, append_images=[blue])) == [255, 0, 0]


def test_orientation_is_not_applied():
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode(encode(Image.new("RGB", (6, 4)), "JPEG", exif=turned)).shape == (3, 4, 6)


def png(header: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks behind its header."""
    body = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        body += struct.pack(">I", len(data)) + kind + data
        body += struct.pack(">I", zlib.crc32(kind + data))
    return body


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png(header, (b"IDAT", zlib.compress(b"")))


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


def test_a_line_is_resized_whatever_its_strides():
    line = torch.arange(200, dtype=torch.uint8).expand(3, 1, 200)
    tall = line.contiguous().transpose(1, 2)  # strides 200, 1, 200
    plain = interpolate(tall[None].double(), (4, 8), mode="bicubic", antialias=True)[0]
    assert (resize(tall, 4, 8) - plain).abs().max() < 0.51


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def plain_centre(image: torch.Tensor, size: int) -> torch.Tensor:
    """The whole image resized by its short side, and then the centre cut out."""
    _, height, width = image.shape
    short = min(height, width)
    tall, wide = size * height // short, size * width // short
    top, left = (tall - size) // 2, (wide - size) // 2
    return resize(image, tall, wide)[:, top : top + size, left : left + size]


@pytest.mark.parametrize("shape", [(3, 301), (7, 101), (40, 200), (1, 50), (2, 333), (64, 500)])
def test_the_centre_alone_has_the_pixels_of_the_whole_resize(shape: tuple[int, int]):
    rows = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=seeded())
    for image in (rows.permute(2, 0, 1), rows.permute(2, 1, 0)):
        found, plain = resize_square(image, 48, crop=True), plain_centre(image, 48)
        assert found.shape == (3, 48, 48) and found.is_contiguous()
        assert (found.int() - plain.int()).abs().max() <= 1


def test_the_centre_of_a_line_takes_the_memory_of_a_square():
    """The whole resize would be 2,000,000 * 224 x 224 pixels, 300 GB."""
    line = torch.arange(2_000_000, dtype=torch.int64).remainder(251).to(torch.uint8)
    image = line[None, None].expand(3, 1, -1)
    wide = resize_square(image, 224, crop=True)
    tall = resize_square(image.transpose(1, 2), 224, crop=True)
    assert torch.equal(wide.transpose(1, 2), tall)
    # Pixels 999,999 and 1,000,000 are the middle: 15 and 16 modulo 251.
    assert abs(wide[0, 0, 111].item() - 999_999 % 251) <= 1 and (wide[0] == wide[0, 0]).all()


@pytest.mark.parametrize("rows", [1, 2])
def test_a_line_longer_than_any_jpeg_is_squashed_in_bands(
    rows: int, monkeypatch: pytest.MonkeyPatch
):
    image = torch.randint(0, 256, (3, rows, 4_000), dtype=torch.uint8, generator=seeded())
    wide = resize(image, 32, 24)
    tall = resize(image.transpose(1, 2), 3, 32)  # columns hardly change: the order does not matter
    monkeypatch.setattr(images, "_LONGEST", 1_000)
    assert (resize(image, 32, 24).int() - wide.int()).abs().max() <= 1
    assert (resize(image.transpose(1, 2), 3, 32).int() - tall.int()).abs().max() <= 2
    mean = image.float().mean()
    assert abs(resize(image.transpose(1, 2), 24, 32).float().mean() - mean) < 3
