"""The parquet that img2dataset leaves beside a tar: more about each sample, found by its key."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage.base import Storage
from pipeline.capfilt.filters import SAFETY_COLUMNS

_Fields = dict[str, Any]
_MAX_DIGITS = 18


@dataclass(frozen=True)
class Columns:
    """The rows of a parquet by key.

    Attributes:
        names: names of its columns.
        rows: rows by key as text; None where rows with different content share the key.
        numbers: the same rows by their keys as numbers.
        readable: False where there is a file that cannot be read.
    """

    names: frozenset[str] = frozenset()
    rows: dict[str, _Fields | None] = field(default_factory=dict)
    numbers: dict[int, _Fields | None] = field(default_factory=dict)
    readable: bool = True

    def find(self, key: str) -> _Fields | None:
        """The row of a tar's key; None where it has none, or several that differ.

        Where no key is equal, one of the same number is it: 0 or "0" for 000000000.
        """
        return self.rows[key] if key in self.rows else self.numbers.get(_number(key))

    def join(self, key: str, told: _Fields) -> tuple[_Fields, str]:
        """A sample's fields: those of its json (``told``) and of its row, and "" or a reason.

        ``not_in_parquet``: the parquet has a column that says what is unsafe, but no row for this
        sample, whose json lacks the field: the filter would pass it without having looked.
        """
        row = self.find(key)
        known = {name for name, value in told.items() if value is not None}
        if row is None:
            missed = (SAFETY_COLUMNS & self.names) - known
            return told, "not_in_parquet" if missed else ""
        return {**told, **{name: row[name] for name in row if name not in known}}, ""


def read_columns(storage: Storage, parquet: str) -> Columns:
    """The parquet of this name; without rows where there is none or it cannot be read."""
    if not storage.exists(parquet):
        return Columns()
    try:
        table = pq.read_table(pa.BufferReader(storage.read(parquet)))
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError):
        return Columns(readable=False)
    keyed = [(_text(row["key"]), row) for row in rows if row.get("key") is not None]
    numbered = [(_number(key), row) for key, row in keyed if _number(key) >= 0]
    return Columns(frozenset(table.column_names), _by(keyed), _by(numbered))


def _by(pairs: Sequence[tuple[Any, _Fields]]) -> dict[Any, _Fields | None]:
    found: dict[Any, _Fields | None] = {}
    for key, row in pairs:
        found[key] = row if found.get(key, row) == row else None
    return found


def _text(key: Any) -> str:
    """A key as text; a whole number that pandas has made a float is the number."""
    if isinstance(key, bytes):
        return key.decode("utf-8", "replace")
    return str(int(key)) if isinstance(key, float) and key.is_integer() else str(key)


def _number(key: str) -> int:
    """The number that a key is; -1 where it is none."""
    digits = key.isascii() and key.isdecimal() and len(key) <= _MAX_DIGITS
    return int(key) if digits else -1
