"""Rows as files for people: JSONL, CSV, Parquet, or a text file for each image."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage.base import Storage, split_url
from cluster.storage.chunks import ChunkStore
from cluster.storage.open import open_storage

SUFFIXES = (".jsonl", ".csv", ".parquet")
Row = Mapping[str, Any]


def store_of(out: str) -> ChunkStore:
    """The chunks of an output: in ``OUT.parts``, beside it.

    Raises:
        ValueError: an output whose suffix is that of another kind of file.
    """
    folder, name = split_url(out.rstrip("/"))
    suffix = PurePosixPath(name).suffix
    if suffix in (".json", ".txt", ".tsv", ".xlsx"):
        raise ValueError(f"--out {out}: give FILE{', FILE'.join(SUFFIXES)}, or a folder")
    return ChunkStore(folder, f"{name}.parts")


def write_rows(out: str, names: Sequence[str], rows: Sequence[Row], text: str) -> None:
    """Write the rows, an older output being replaced once the new one is whole.

    Args:
        names: columns.
        text: column whose texts the text files hold, a line each, where ``out`` is a folder.
    """
    suffix = PurePosixPath(out).suffix
    if suffix not in SUFFIXES:
        write_texts(open_storage(out), rows, text)
        return
    folder, name = split_url(out)
    made = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[suffix](names, rows)
    open_storage(folder).replace(name, made)


def write_texts(storage: Storage, rows: Iterable[Row], text: str) -> None:
    """A ``.txt`` for each image, under the image's name; images that failed have none."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if not row["failed"]:
            name = str(PurePosixPath(row["image"]).with_suffix(".txt"))
            found.setdefault(name, []).append(row[text])
    for name, lines in found.items():
        data = "".join(f"{line}\n" for line in lines).encode()
        if not storage.exists(name) or storage.read(name) != data:
            storage.replace(name, data)


def _jsonl(names: Sequence[str], rows: Sequence[Row]) -> bytes:
    lines = (json.dumps({name: row[name] for name in names}, ensure_ascii=False) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def _csv(names: Sequence[str], rows: Sequence[Row]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, names, extrasaction="ignore", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode("utf-8", "replace")


def _parquet(names: Sequence[str], rows: Sequence[Row]) -> bytes:
    kinds = {"number": pa.int32()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    table = pa.table({name: [row[name] for row in rows] for name in names}, schema=schema)
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()
