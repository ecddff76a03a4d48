"""The images nearest to a query, over features of ``jobs/embed.py``: exact, or by an index.

    vectors = Vectors(np.load("features/images.npy", mmap_mode="r"))
    exact(vectors, query_E, count=10)
    index = build_index(vectors.flat)
    by_index(vectors, index, query_E, count=10)

A text's score of an image is the largest product over the image's queries (paper, section 3.2). The
index (HNSW, by usearch) therefore holds every query of every image as a vector of its own; what it
finds is scored exactly.

Shape suffixes: N images, Q queries, V vectors (N times Q), E width of the features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from usearch.index import Index

_BLOCK = 1 << 24  # numbers of a block of the exact search
_WIDER = 4  # vectors that the index is asked for, over those that are wanted
CONNECTIVITY, ADD, SEARCH = 16, 64, 128
"""Links of a vector in the graph; candidates kept while building it, and while searching."""


@dataclass(frozen=True)
class Vectors:
    """Features of images.

    Attributes:
        queries: features ``N Q E``, L2-normalised; may be a file that is mapped into memory.
    """

    queries: np.ndarray

    @property
    def flat(self) -> np.ndarray:
        """Every vector ``V E``."""
        return self.queries.reshape(-1, self.queries.shape[-1])

    def scores(self, rows: np.ndarray, query_E: np.ndarray) -> np.ndarray:
        """The largest product over the queries, of some images."""
        return (self.queries[rows] @ query_E).max(1)


def exact(vectors: Vectors, query_E: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of the best images, best first; equal scores in the order of rows."""
    images, queries, width = vectors.queries.shape
    step = max(1, _BLOCK // (queries * width))
    parts = [
        vectors.scores(np.arange(first, min(first + step, images)), query_E)
        for first in range(0, images, step)
    ]
    return _best(np.arange(images), np.concatenate(parts), count)


def by_index(
    vectors: Vectors, index: Index, query_E: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores as ``exact`` gives them, of those images that the index finds."""
    queries = vectors.queries.shape[1]
    asked = _WIDER * count if queries == 1 else _WIDER * count * 2
    rows = np.empty(0, dtype=np.int64)
    while True:  # an image may take several places
        found: Any = index.search(query_E, min(asked, len(index)))
        rows = np.unique(found.keys.astype(np.int64) // queries)
        if len(rows) >= count or asked >= len(index):
            return _best(rows, vectors.scores(rows, query_E), count)
        asked *= 2


def build_index(flat_VE: np.ndarray, threads: int = 0) -> Index:
    """An index of vectors, whose keys are their numbers; it stores them in 16 bits.

    Args:
        threads: CPU threads; 0: all. The graph depends on their timing where there are several.
    """
    index = Index(
        ndim=flat_VE.shape[1], metric="ip", dtype="f16", connectivity=CONNECTIVITY,
        expansion_add=ADD, expansion_search=SEARCH,
    )  # fmt: skip
    index.add(np.arange(len(flat_VE)), np.ascontiguousarray(flat_VE), threads=threads)
    return index


def open_index(folder: Path, flat_VE: np.ndarray) -> Index:
    """The index of a folder of features; built where there is none, or one of older features."""
    path, source = folder / "images.usearch", folder / "images.npy"
    if path.is_file() and path.stat().st_mtime_ns >= source.stat().st_mtime_ns:
        index = Index.restore(str(path), view=True)
        if index is not None and len(index) == len(flat_VE):
            index.expansion_search = SEARCH  # type: ignore[misc]
            return index
    index = build_index(flat_VE)
    aside = folder / ".images.usearch.part"
    index.save(str(aside))
    aside.replace(path)
    return index


def _best(rows: np.ndarray, scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-scores, kind="stable")[:count]
    return rows[order], scores[order]
