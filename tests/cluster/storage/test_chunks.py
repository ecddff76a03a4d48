"""Chunks are written once, read back whole, and never mixed with those of another plan."""

from pathlib import Path

import numpy as np
import pytest

from cluster.storage.base import Conflict
from cluster.storage.chunks import ChunkStore, OtherPlan


def test_rows_and_arrays_come_back(tmp_path: Path) -> None:
    store = ChunkStore(str(tmp_path), "parts")
    rows = [{"text": "a\u2028b"}, {"text": "ü\n"}]
    assert store.write("one", {"items": 2}, rows)
    assert not store.write("one", {"items": 2}, rows)
    assert store.read("one") == ({"items": 2}, rows)
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    store.write("two", {"items": 2}, arrays)
    header, found = store.read("two")
    assert header == {"items": 2}
    assert np.array_equal(found["x"], arrays["x"])  # type: ignore[call-overload]
    assert store.names() == {"one", "two"}
    assert store.has("two")
    assert not store.has("three")
    with pytest.raises(Conflict):
        store.write("one", {"items": 1}, rows[:1])


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    store = ChunkStore(str(tmp_path), "parts")
    store.write("one", {"items": 2}, [{"a": 1}, {"a": 2}])
    file = tmp_path / "parts" / "one.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"one\.jsonl is damaged"):
        store.read("one")


def test_another_plan_is_told(tmp_path: Path) -> None:
    store = ChunkStore(str(tmp_path), "parts")
    store.open_plan({"prompt": "a", "beams": 5})
    store.open_plan({"beams": 5, "prompt": "a"})
    with pytest.raises(OtherPlan, match='prompt: "a" there, "b" now'):
        store.open_plan({"prompt": "b", "beams": 5})
    store.remove()
    assert store.plan() is None
