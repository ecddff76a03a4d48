"""Search over the output of ``jobs/embed.py``: queries are texts or images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from evaluation.report.page import Facts, Query, Report, Retrieval, Retrieved, Section
from jobs.bulk.nearest import Vectors, by_index, exact, open_index
from jobs.predict import Embedder, load_embedder, pool
from pipeline.sources.pictures import open_pictures, read_images

_MANY = 200_000  # vectors from which an index is taken


@dataclass(frozen=True)
class SearchArgs:
    """Features, queries, and the page of results."""

    features: Path
    """folder that jobs/embed.py wrote"""
    query: tuple[str, ...] = ()
    """texts to search for"""
    image: tuple[Path, ...] = ()
    """image files to search for"""
    k: int = 12
    """number of results of a query"""
    way: Literal["auto", "exact", "index"] = "auto"
    """exact: a text is compared with all images. index: with those that an index finds, which is
    kept beside the features. auto: index from 200,000 vectors on. Images are compared exactly"""
    rerank: int = 0
    """number of the best results of a text that ITM ranks again; 0: none"""
    page: Path | None = None
    """HTML page to write, with the pictures"""
    checkpoint: str | None = None
    """the checkpoint that made the features; default: the one that they name"""
    device: str = "auto"
    """cpu or cuda; auto: cuda where there is a GPU"""

    def __post_init__(self) -> None:
        if self.k < 1 or self.rerank < 0:
            raise ValueError(f"--k {self.k} --rerank {self.rerank}: give at least 1, and 0")
        if not self.query and not self.image:
            raise ValueError("nothing to search for: give --query TEXT or --image FILE")


@dataclass(frozen=True)
class Found:
    """The results of one query, best first.

    Attributes:
        query: the text, or the image file.
        images: names of the images.
        scores: cosines; of results that ITM ranked, the logit of "match" minus that of "no match".
    """

    query: str | Path
    images: list[str]
    scores: list[float]


class Searcher:
    """An embedded set of images, and the checkpoint that embedded it.

    Raises:
        ValueError, FileNotFoundError: the folder holds no features, or the checkpoint is gone.
    """

    def __init__(self, args: SearchArgs) -> None:
        self._args = args
        folder = args.features
        if not (folder / "embed.json").is_file() or not (folder / "images.npy").is_file():
            raise ValueError(f"--features {folder}: no features in it; make them: jobs/embed.py")
        self._about: dict[str, Any] = json.loads((folder / "embed.json").read_text())
        table = pq.read_table(folder / "images.parquet").to_pylist()
        self.names = [one["image"] for one in table if one["row"] >= 0]
        self._vectors = Vectors(np.load(folder / "images.npy", mmap_mode="r"))
        flat = self._vectors.flat
        self.indexed = args.way == "index" or (args.way == "auto" and len(flat) >= _MANY)
        self._index = open_index(folder, flat) if self.indexed else None
        self._model: Embedder = load_embedder(
            args.checkpoint or self._about["checkpoint"], args.device
        )

    def by_text(self, text: str) -> Found:
        """The images that a text fits best."""
        args, query_E = self._args, self._model.embed_texts([text])[0].numpy()
        count = max(args.k, args.rerank)
        if self._index is None:
            rows, scores = exact(self._vectors, query_E, count)
        else:
            rows, scores = by_index(self._vectors, self._index, query_E, count)
        names = [self.names[row] for row in rows]
        if args.rerank:
            return self._ranked(text, names[: args.rerank])
        return Found(text, names[: args.k], scores.tolist()[: args.k])

    def by_image(self, image: Path) -> Found:
        """The images that are most like an image, by their pooled features."""
        query_E = pool(self._model.image_embeds([image]))[0].numpy()
        pooled = np.load(self._args.features / "pooled.npy", mmap_mode="r")
        rows, scores = exact(Vectors(pooled[:, None]), query_E, self._args.k)
        return Found(image, [self.names[row] for row in rows], scores.tolist())

    def pictures(self, names: Sequence[str]) -> dict[str, bytes]:
        """The encoded images of these names, from where they were embedded."""
        source = open_pictures(self._about["input"], self._about["images"])
        return read_images(source, names)

    def _ranked(self, text: str, names: Sequence[str]) -> Found:
        """These images in the order of ITM."""
        pictures = self.pictures(names)
        there = [name for name in names if name in pictures]
        if len(there) < len(names):
            raise ValueError(
                f"--rerank reads the images again, and {len(names) - len(there)} of {len(names)} "
                f"are not in {self._about['input']} now; leave --rerank out"
            )
        scores = self._model.match([pictures[name] for name in there], [text] * len(there))
        order = scores.argsort(descending=True, stable=True).tolist()[: self._args.k]
        return Found(text, [there[n] for n in order], [scores[n].item() for n in order])


def report(args: SearchArgs, searcher: Searcher, found: Sequence[Found]) -> Report:
    """The page of results."""
    pictures = searcher.pictures([name for one in found for name in one.images])
    queries = [
        Query(
            [
                Retrieved(None, score, name, pictures.get(name, b""))
                for name, score in zip(one.images, one.scores, strict=True)
            ],
            text=one.query if isinstance(one.query, str) else "",
            image=one.query if isinstance(one.query, Path) else None,
        )
        for one in found
    ]
    note = "Best first. The number is the cosine of the query and the image."
    if args.rerank:
        note += " For a text it is ITM's logit of match minus that of no match."
    facts = {
        "images": len(searcher.names),
        "search": "index" if searcher.indexed else "exact",
        "ranked again by ITM": args.rerank or "none",
        "features": str(args.features),
    }
    sections: list[Section] = [
        Retrieval("Results", queries, note),
        Facts("Search", facts),
    ]
    return Report("Search", sections, f"{len(found)} queries over {len(searcher.names)} images")
