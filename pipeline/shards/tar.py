"""Tars of samples: written to the same bytes every time, walked, and indexed by offset.

Written names are in a fixed order; mtime, uid, gid and mode are fixed. Reading walks the headers
itself: nothing is ever extracted to disk, and one ``pread`` of a span brings a whole sample.
"""

import io
import itertools
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.filenames import is_hidden

BLOCK = 512
_MAX_NAME = 1 << 16  # a pax or GNU long-name block larger than this is not a name
_CHUNK = 1 << 20
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class TarError(ValueError):
    """A tar that cannot be read on; ``reason`` is the word counted in the parquet."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a tar: ``offset`` of its first header block, where ``data`` starts, sizes."""

    name: str
    offset: int
    data: int
    size: int
    regular: bool

    @property
    def end(self) -> int:
        """Offset behind the padded data: where the next member's header starts."""
        return self.data + _padded(self.size)


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) by webdataset's rule: the key ends at the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    stem, _, ext = base.partition(".")
    return folder + slash + stem, ext.lower()


def write_tar(
    samples: Sequence[tuple[str, Mapping[str, bytes]]],
) -> tuple[bytes, list[tuple[int, int]]]:
    """Write samples in the given order, members in their mapping's order.

    Args:
        samples: (key, {extension: bytes}); names come out as ``key.extension``.

    Returns:
        The tar, and per sample (offset, length) of the span that holds all its members.

    Raises:
        ValueError: a key that webdataset would split differently, or one that is there twice.
    """
    out, spans, seen = io.BytesIO(), [], set()
    for key, members in samples:
        if key in seen or split_name(f"{key}.x")[0] != key:
            raise ValueError(f"tar key {key!r}: keys must be unique and have no dot in their name")
        seen.add(key)
        start = out.tell()
        for ext, data in members.items():
            out.write(_header(f"{key}.{ext}", len(data)))
            out.write(data)
            out.write(b"\0" * (_padded(len(data)) - len(data)))
        spans.append((start, out.tell() - start))
    out.write(b"\0" * (2 * BLOCK))
    return out.getvalue(), spans


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    # PAX equals USTAR byte for byte as long as the name is short ASCII.
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def walk_tar(file: BinaryIO, size: int, ended: bool = False) -> Iterator[Member]:
    """The members of a tar (USTAR, PAX, GNU long names), in order, without reading their data.

    A tar that was joined to the end of another one is read on, as ``tar --ignore-zeros`` does.

    Args:
        file: seekable; ``size`` its length in bytes.
        ended: insist on the end-of-archive block: without one, a cut between two members shows
            as nothing at all.

    Raises:
        TarError: after every complete member before the damage has been yielded; its reason is
            ``empty_tar`` (zero bytes), ``compressed_tar``, ``truncated_tar``, ``corrupt_tar`` or
            ``bytes_after_end`` (what follows the end of the archive is no archive).
    """
    if size == 0:
        raise TarError("empty_tar", "the file has zero bytes")
    offset = start = 0
    long_name: str | None = None
    closed = False  # whether an end of an archive is what was read last
    while offset < size:
        file.seek(offset)
        block = file.read(BLOCK)
        if not block.strip(b"\0") and (closed or len(block) == BLOCK):
            offset = start = _skip_zeros(file, offset, size)
            closed = True
            continue
        name, length, kind = _parse_header(block, offset, closed)
        data = offset + BLOCK
        if data + length > size:
            raise TarError("truncated_tar", f"{name!r} at byte {start} ends behind the file")
        closed = False
        if kind in b"xLgK":
            if kind in b"xL":
                long_name = _long_name(file.read(min(length, _MAX_NAME)), kind, long_name)
            offset = data + _padded(length)
            continue
        regular = kind in b"0\0007"
        yield Member(long_name or name, start, data, length if regular else 0, regular)
        offset = start = data + (_padded(length) if regular else 0)
        long_name = None
    if long_name is not None:
        raise TarError("truncated_tar", f"ends behind the long name {long_name!r}")
    if ended and not closed:
        raise TarError("truncated_tar", "no end-of-archive block")


def _skip_zeros(file: BinaryIO, offset: int, size: int) -> int:
    """Offset of the first block from ``offset`` on that is not all zeros, or ``size``."""
    file.seek(offset)
    while offset < size:
        chunk = file.read(_CHUNK)
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if zeros < len(chunk) or not chunk:
            return offset + zeros // BLOCK * BLOCK
        offset += len(chunk)
    return size


def _parse_header(block: bytes, offset: int, closed: bool) -> tuple[str, int, bytes]:
    """(name, size, kind) of a header; ``closed``: an archive has ended before it."""
    try:
        return _header_fields(block, offset)
    except TarError as broken:
        packed = next((name for mark, name in _COMPRESSED.items() if block.startswith(mark)), "")
        if packed and offset == 0:
            detail = f"it is compressed ({packed}); unpack it to a plain .tar"
            raise TarError("compressed_tar", detail) from broken
        if closed:
            detail = f"what follows the end of the archive, at byte {offset}, is no archive"
            raise TarError("bytes_after_end", detail) from broken
        raise


def _header_fields(block: bytes, offset: int) -> tuple[str, int, bytes]:
    if len(block) < BLOCK:
        raise TarError("truncated_tar", f"header at byte {offset} is cut")
    try:
        stated = int(block[148:156].strip(b" \0") or b"0", 8)
        if block[124] & 0x80:  # base-256, for members over 8 GiB
            size = int.from_bytes(block[125:136], "big")
        else:
            size = int(block[124:136].strip(b" \0") or b"0", 8)
    except ValueError as broken:
        raise TarError("corrupt_tar", f"header at byte {offset} is no tar header") from broken
    if stated != sum(block[:148]) + 8 * 32 + sum(block[156:]):
        raise TarError("corrupt_tar", f"header at byte {offset} fails its checksum")
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    full = prefix + b"/" + name if prefix else name
    return full.decode("utf-8", "surrogateescape"), size, block[156:157]


def _long_name(data: bytes, kind: bytes, before: str | None) -> str | None:
    if kind == b"L":
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    found = before
    while data.strip(b"\0"):
        number, _, _ = data.partition(b" ")
        length = int(number) if number.isdigit() else 0
        if length <= len(number) + 1:
            raise TarError("corrupt_tar", "a PAX record has no length")
        field_name, _, value = data[len(number) + 1 : length - 1].partition(b"=")
        if field_name == b"path":
            found = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return found


def group_members(members: Iterable[Member]) -> list[tuple[str, list[Member]]]:
    """The regular members by key, keys in the order in which they first come.

    Members of one key need not be neighbours. Hidden ones (macOS's ``._1.jpg``) are skipped. An
    extension that a key has already starts a new group of that key.
    """
    groups: list[tuple[str, list[Member]]] = []
    latest: dict[str, tuple[list[Member], set[str]]] = {}
    for member in members:
        if not member.regular or is_hidden(member.name):
            continue
        key, ext = split_name(member.name)
        group, seen = latest.get(key, ([], {ext}))
        if ext in seen:
            group, seen = latest[key] = [], set()
            groups.append((key, group))
        group.append(member)
        seen.add(ext)
    return groups


def find_scattered(groups: Sequence[tuple[str, list[Member]]]) -> tuple[str, int] | None:
    """The first key with members behind those of another key, and the offset of the last of them.

    ``groups`` are as ``group_members`` gives them; None where every sample is in one piece.
    """
    for (key, group), (_, following) in itertools.pairwise(groups):
        if group[-1].offset > following[0].offset:
            return key, group[-1].offset
    return None


def index_tar(path: str | os.PathLike[str]) -> list[tuple[str, int, int]]:
    """(key, offset, length) of every sample of a tar, ours or foreign: one ``pread`` each.

    Raises:
        ValueError: the tar is empty, truncated, corrupt or compressed, or a sample's members are
            not in one piece; the message names the file.
    """
    with open(path, "rb") as file:
        try:
            groups = group_members(walk_tar(file, os.fstat(file.fileno()).st_size))
        except TarError as broken:
            raise ValueError(f"{os.fspath(path)}: {broken}; make it again") from broken
    scattered = find_scattered(groups)
    if scattered:
        raise ValueError(
            f"{os.fspath(path)}: its members are not sorted by sample ({scattered[0]!r} has one at "
            f"byte {scattered[1]}, behind other samples); make it again with tar --sort=name"
        )
    return [(key, group[0].offset, group[-1].end - group[0].offset) for key, group in groups]


def read_span(span: bytes) -> dict[str, bytes]:
    """{extension: data} of one sample's span, as ``index_tar`` or the parquet gives it.

    Raises:
        TarError: the span is not a whole number of members.
    """
    walked = (m for m in walk_tar(io.BytesIO(span), len(span)) if m.regular)
    shown = (m for m in walked if not is_hidden(m.name))
    return {split_name(m.name)[1]: span[m.data : m.data + m.size] for m in shown}
