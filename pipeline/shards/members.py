"""A fast reader of one sample's span, for a loader that reads thousands a second."""

from zlib import adler32

from pipeline.shards.tar import BLOCK, read_span


def span_members(span: bytes) -> dict[str, bytes]:
    """{extension: data}, as ``read_span`` gives it, in half the time for what we write ourselves.

    Raises:
        TarError: the span is not a whole number of members.
    """
    found = _plain_members(span)
    return read_span(span) if found is None else found


def _plain_members(span: bytes) -> dict[str, bytes] | None:
    """The members of a span of plain files with short names; None for any other, or a damaged one.

    A header's checksum is the sum of its bytes, its own eight taken as blanks. The lower half of
    Adler-32 is such a sum and one, modulo 65,521: sixty times as fast as Python's ``sum``.
    """
    found, offset = dict[str, bytes](), 0
    while offset < len(span):
        start = offset + BLOCK
        header = span[offset:start]
        if len(header) < BLOCK or header[156] != ord("0") or header[345]:  # 345: a name's prefix
            return None
        try:
            size, stated = int(header[124:135], 8), int(header[148:154], 8)
        except ValueError:
            return None
        before, behind = adler32(header[:148]), adler32(header[156:])
        if stated != (before & 0xFFFF) + (behind & 0xFFFF) - 2 + 8 * ord(" "):
            return None
        offset = start + (size + BLOCK - 1) // BLOCK * BLOCK
        if offset > len(span):
            return None
        name = header[:100].partition(b"\0")[0].rpartition(b"/")[2]
        if name.startswith(b"."):  # hidden: macOS's ._1.jpg
            continue
        extension = name.partition(b".")[2].decode("utf-8", "surrogateescape").lower()
        found[extension] = span[start : start + size]
    return found
