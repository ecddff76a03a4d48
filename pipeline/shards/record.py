"""The json record of a sample, as far as training reads it, where its tar holds only a list.

In LAVIS's layout (``--json-layout lavis``) the json member is a plain list of captions; the record
is then made from the row of the parquet beside the tar, or from the list alone.
"""

import pyarrow as pa

from pipeline.text import TextError, load_json, to_json

RECORD_COLUMNS = ("uid", "sha256", "captions", "scores", "origins", "kept")


def record_from_table(table: pa.Table, index: int) -> bytes:
    """The json member of the full layout, as far as training reads it, from a row of the parquet.

    Args:
        table: rows of the usable samples, with ``RECORD_COLUMNS``.
        index: number of the sample.
    """
    row = table.slice(index, 1).to_pylist()[0]
    told = zip(row["captions"], row["scores"], row["origins"], strict=True)
    captions = [{"text": text, "score": score, "origin": origin} for text, score, origin in told]
    return to_json(
        {"uid": row["uid"], "sha256": row["sha256"], "captions": captions, "kept": row["kept"]}
    )


def record_from_list(listed: bytes) -> bytes:
    """The same record from the list alone: its first two captions are kept, without scores."""
    try:
        texts = [text for text in load_json(listed) if isinstance(text, str)]
    except TextError:
        return listed  # the reader of the record says what is wrong with it
    captions = [{"text": text, "score": 0.0, "origin": ""} for text in texts]
    return to_json({"captions": captions, "kept": list(range(min(2, len(texts))))})
