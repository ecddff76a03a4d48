"""The parquet beside each tar: a row for every input sample, with its outcome.

Equal rows give equal bytes, for one version of pyarrow: the file holds no timestamps.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("key", pa.string()),
        ("source", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("web_caption", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("origins", pa.list_(pa.string())),
        ("kept", pa.list_(pa.int32())),
        ("offset", pa.int64()),
        ("length", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class SampleRow:
    """The outcome of one input sample, whatever became of it.

    Attributes:
        uid: 32 hex digits (``pipeline.sample.make_uid``).
        key: name in the input shard.
        source: name of the source.
        status: ``ok``, ``filtered`` or ``failed``.
        reason: word for why it was dropped; "" if it was not.
        width, height: size of the image in pixels; 0 where it is not known.
        sha256: hex digest of the encoded image; "" where it was not read.
        web_caption: caption as the source has it.
        captions: captions that competed, best first.
        scores: similarity of each to the image.
        origins: ``synthetic``, ``web`` or ``human`` for each.
        kept: indices of the kept captions, best first.
        offset, length: span in the tar that holds all members of the sample; -1 and 0 without one.
    """

    uid: str
    key: str
    source: str
    status: str
    reason: str = ""
    width: int = 0
    height: int = 0
    sha256: str = ""
    web_caption: str = ""
    captions: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    origins: tuple[str, ...] = ()
    kept: tuple[int, ...] = ()
    offset: int = -1
    length: int = 0


def write_parquet(rows: Sequence[SampleRow]) -> bytes:
    """The rows as parquet; equal rows give equal bytes (for one version of pyarrow)."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=10_000)
    return sink.getvalue().to_pybytes()


def read_parquet(data: bytes) -> list[SampleRow]:
    """The inverse of ``write_parquet``."""
    rows = pq.read_table(pa.BufferReader(data)).to_pylist()
    lists = ("captions", "scores", "origins", "kept")
    return [SampleRow(**{**row, **{name: tuple(row[name]) for name in lists}}) for row in rows]
