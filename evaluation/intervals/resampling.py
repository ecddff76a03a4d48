"""Resamples of images that are the same, to the last bit, on every machine.

Numbers become multiples of a power of two, so coarse that every sum of them is exact in fp64: a
matrix product then gives the same bits in any order of additions. The draws are made from the bits
of PCG64, which numpy promises not to change.

Shape suffixes: N items, C images, K columns, B resamples.
"""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np

_LARGEST = 2.0**51  # sums stay below 2**53 with the errors of rounding
_CELLS = 2_000_000
"""Number of counts that are held at a time: 16 MB."""


def index_of(images: Sequence[Hashable]) -> tuple[np.ndarray, int]:
    """The number of the image of each item ``N``, and the number of images.

    Images are numbered in the order of their names, so that the order of items does not matter.
    """
    order = sorted(set(images), key=lambda image: (str(image), type(image).__name__))
    number = {image: place for place, image in enumerate(order)}
    return np.array([number[image] for image in images], dtype=np.int64), len(order)


def on_grid(values: np.ndarray, terms: float) -> np.ndarray:
    """Values whose columns are multiples of a power of two, so that sums of ``terms`` are exact.

    The change is below 1e-12 of the largest value times the number of terms.
    """
    largest = np.abs(values).max(axis=0, initial=0.0)
    room = _LARGEST / (np.maximum(largest, 1e-200) * terms)
    exponent = np.minimum(np.floor(np.log2(room)), 60).astype(np.int64)
    grain = np.ldexp(1.0, -exponent)
    return np.rint(values / grain) * grain


def image_sums(rows_NK: np.ndarray, index_N: np.ndarray, images: int) -> np.ndarray:
    """Sums ``C K`` of the rows of each image, on a grid on which resamples are exact."""
    exact = on_grid(rows_NK, max(len(rows_NK), 1))
    columns = [np.bincount(index_N, weights=column, minlength=images) for column in exact.T]
    return on_grid(np.stack(columns, axis=1), images)


def resamples(images: int, count: int, seed: int, width: int = 1) -> Iterator[np.ndarray]:
    """How often each image is drawn in each resample: blocks ``B C`` of fp64, ``count`` in all.

    Args:
        width: largest number of cells that a caller makes of each row, if more than the images.
    """
    stream = np.random.PCG64(np.random.SeedSequence(seed))
    block = max(1, _CELLS // max(images, width))
    half = (images + 1) // 2
    for start in range(0, count, block):
        size = min(block, count - start)
        raw = stream.random_raw((size, half))
        halves = np.concatenate([raw >> np.uint64(32), raw & np.uint64(0xFFFFFFFF)], axis=1)
        drawn = (halves[:, :images] * np.uint64(images)) >> np.uint64(32)
        cells = drawn.astype(np.int64) + images * np.arange(size)[:, None]
        counts = np.bincount(cells.ravel(), minlength=size * images)
        yield counts.reshape(size, images).astype(np.float64)


def swaps(images: int, count: int, seed: int, width: int = 1) -> Iterator[np.ndarray]:
    """Whether each image is swapped between two runs: blocks ``B C`` of 0 and 1, fp64.

    Args:
        width: largest number of cells that a caller makes of each row, if more than the images.
    """
    stream = np.random.PCG64(np.random.SeedSequence([seed, 1]))
    block = max(1, _CELLS // max(images, width))
    words = -(-images // 64)
    for start in range(0, count, block):
        raw = stream.random_raw((min(block, count - start), words)).astype("<u8")
        bits = np.unpackbits(raw.view(np.uint8), axis=1, bitorder="little")
        yield bits[:, :images].astype(np.float64)
