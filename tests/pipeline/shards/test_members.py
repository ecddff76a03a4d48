import pytest

from pipeline.shards.members import _plain_members, span_members
from pipeline.shards.tar import BLOCK, TarError, read_span, write_tar

MEMBERS = {"jpg": bytes(range(256)) * 5, "json": b"{}", "txt": b""}


def span(key: str) -> bytes:
    return write_tar([(key, MEMBERS)])[0][: -2 * BLOCK]


def test_plain_spans():
    for key in ("000012", "folder.with/dots/000012", "x" * 90, "\u00ffnicode"):
        assert span_members(span(key)) == read_span(span(key)) == MEMBERS
    assert _plain_members(span("000012")) == MEMBERS


def test_other_spans_are_walked():
    long = span("folder/" * 30 + "000012")
    assert _plain_members(long) is None and span_members(long) == MEMBERS


@pytest.mark.parametrize("place", [0, 130, 150, 300, 400, 511])
def test_damage_is_seen(place: int):
    data = bytearray(span("000012"))
    data[place] ^= 1
    with pytest.raises(TarError):
        span_members(bytes(data))


def test_a_cut_is_seen():
    with pytest.raises(TarError):
        span_members(span("000012")[: -2 * BLOCK])
