"""Mutants of every format that is decoded: whatever a decoder raises, one exception comes out."""

import copy
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.images import ImageError, decode, pixels, read_header
from tests.pipeline.loading.test_loader import batches
from tests.pipeline.sources.test_sources import tar
from tests.pipeline.test_images import encode

REASONS = {
    *("empty_image", "not_an_image", "too_many_pixels"),
    *("truncated_image", "undecodable_image", "unsupported_mode"),
}
MUTANTS = 40


def files() -> Iterator[tuple[str, bytes]]:
    """A small file of each format and of the variants that take other ways through a decoder."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    clear, plain = Image.fromarray(noise), Image.fromarray(noise[..., :3].copy())
    grey16 = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    for form in ("PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF"):
        yield form, encode(clear.convert("P") if form == "GIF" else clear, form)
    for form in ("JPEG", "PPM", "ICO"):
        yield form, encode(plain, form)
    yield "PNG palette", encode(plain.quantize(16), transparency=3)
    yield "PNG 16", encode(grey16)
    yield "JPEG progressive CMYK", encode(plain.convert("CMYK"), "JPEG", progressive=True)
    for form in ("GIF", "WEBP", "PNG", "MPO", "TIFF"):
        yield f"{form} animated", encode(plain, form, save_all=True, append_images=[plain, plain])
    for way in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield f"TIFF {way}", encode(plain, "TIFF", compression=way)
    yield "TIFF 16", encode(grey16, "TIFF")


def mutant(data: bytes, draw: random.Random) -> bytes:
    """Bytes with some of them overwritten, cut out, doubled, or without their end."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        at = draw.randrange(len(made))
        match draw.randrange(5):
            case 0:
                made[at] = draw.randrange(256)
            case 1:
                made[at : at + 4] = draw.choice(
                    (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff")
                )
            case 2:
                del made[at : at + draw.randint(1, 9)]
            case 3:
                made[at:at] = made[max(0, at - 8) : at]
            case 4:
                made[at] ^= 1 << draw.randrange(8)
        if len(made) < 2:
            break
    return bytes(made[: draw.randint(1, len(made))] if draw.random() < 0.2 else made)


@pytest.mark.parametrize(("name", "data"), list(files()), ids=[name for name, _ in files()])
@pytest.mark.filterwarnings("ignore")
def test_only_image_errors_leave_the_decoder(name: str, data: bytes):
    draw = random.Random(name)
    refused = 0
    for number in range(MUTANTS):
        changed = mutant(data, draw)
        for read in (read_header, decode):
            try:
                read(changed)
            except ImageError as told:
                assert told.reason in REASONS, f"mutant {number}: {told}"
                assert str(told).startswith(f"{told.reason}: ")
                refused += 1
    assert refused


def avif_without_planes() -> bytes:
    """An AVIF with ones for all its coded data: its decoder raises RuntimeError."""
    whole = encode(Image.new("RGB", (20, 10), (200, 30, 40)), "AVIF")
    start = whole.index(b"mdat") + 4
    return whole[:start] + b"\xff" * (len(whole) - start)


def tiff_with_a_broken_tag() -> bytes:
    """A TIFF that says where its pixels are (tag 273) in floats: its decoder raises TypeError."""
    made = bytearray(encode(Image.new("RGBA", (16, 12)), "TIFF"))
    start = int.from_bytes(made[4:8], "little")
    at = start + 2
    while int.from_bytes(made[at : at + 2], "little") != 273:
        at += 12
    made[at + 2 : at + 4] = (11).to_bytes(2, "little")
    return bytes(made)


@pytest.mark.parametrize(
    ("data", "raised"),
    [(avif_without_planes(), "RuntimeError"), (tiff_with_a_broken_tag(), "TypeError")],
)
def test_a_decoder_s_own_exception_is_a_reason(data: bytes, raised: str):
    with pytest.raises(ImageError, match=f"undecodable_image: {raised}") as told:
        decode(data)
    sent = copy.copy(told.value)  # as between processes
    assert (str(sent), sent.reason) == (str(told.value), "undecodable_image")


def test_a_short_memory_is_a_reason(monkeypatch: pytest.MonkeyPatch):
    def full(image: Image.Image) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(Image.Image, "load", full)
    with pytest.raises(ImageError, match="undecodable_image: MemoryError: no room"):
        pixels(Image.new("RGB", (2, 2)))


def test_training_goes_on_with_another_sample(tmp_path: Path):
    good = encode(Image.new("RGB", (20, 10), (9, 9, 9)))
    images = [avif_without_planes(), tiff_with_a_broken_tag(), good, good]
    samples = [
        (f"{number}", [("png", image), ("txt", b"a caption")])
        for number, image in enumerate(images)
    ]
    tar(tmp_path / "a.tar", [(f"{k}.{ext}", data) for k, parts in samples for ext, data in parts])
    (made,) = batches(str(tmp_path), range(1))
    assert len(made.texts) == 8 and made.images_B3HW.shape == (8, 3, 32, 32)
    told = " ".join(made.replaced)
    assert "RuntimeError" in told and "TypeError" in told
