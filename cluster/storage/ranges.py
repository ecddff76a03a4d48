"""The download of an object by ranged reads at the same time.

One stream from S3 gives 60 to 100 MB/s, however fast the link is. The answer to the first, short
read tells the object's size and version; the rest is then cut into one piece a stream. A piece
that breaks off goes on where it was, and all pieces are of the same version.
"""

import contextlib
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from typing import Any

from botocore import exceptions as aws

from cluster.storage.s3_requests import error_code

_FIRST = 1 << 20  # bytes of the first read, and the least that a further one is worth
_CHUNK = 1 << 18


def download_ranges(
    get: Callable[..., dict[str, Any]],
    repeat: Callable[[Callable[[], None]], None],
    file: int,
    streams: int,
) -> None:
    """Write an object to an open, empty file.

    Args:
        get: boto3's ``get_object`` of this object; takes ``Range`` and ``IfMatch``.
        repeat: calls a function until it raises no passing fault.
        file: descriptor of the file.
        streams: pieces that are read at the same time.

    Raises:
        ClientError: the server's refusal.
        OSError: the file cannot be written.
        ValueError: the server does not know ranged reads.
    """
    whole = _Object(get, repeat, file)
    with ThreadPoolExecutor(streams, thread_name_prefix="ranges") as pool:
        try:
            pieces: list[Future[Any]] = [pool.submit(whole.fetch, 0, _FIRST)]
            first: list[Future[Any]] = [whole.known, *pieces]
            wait(first, return_when=FIRST_COMPLETED)
            if whole.known.done():
                bounds = piece_bounds(whole.known.result()[0], streams)
                pieces += [pool.submit(whole.fetch, start, stop) for start, stop in bounds]
            for piece in as_completed(pieces):
                piece.result()
        except BaseException:
            whole.given_up.set()
            raise


def piece_bounds(size: int, streams: int) -> list[tuple[int, int]]:
    """(first byte, byte after the last) of the pieces behind the first read, of like sizes."""
    rest = max(0, size - _FIRST)
    count = min(streams, -(-rest // _FIRST))
    marks = [_FIRST + rest * number // count for number in range(count + 1)] if count else []
    return list(itertools.pairwise(marks))


class _Object:
    """An object that is written to a file by several threads.

    Attributes:
        known: size and ETag, once an answer has told them.
        given_up: set when a piece has failed, so that the others end.
    """

    def __init__(
        self,
        get: Callable[..., dict[str, Any]],
        repeat: Callable[[Callable[[], None]], None],
        file: int,
    ) -> None:
        self._get, self._repeat, self._file = get, repeat, file
        self.known: Future[tuple[int, str]] = Future()
        self.given_up = threading.Event()

    def fetch(self, start: int, stop: int) -> None:
        """Write the bytes [start, stop), as far as the object has them."""
        place = start

        def get() -> None:
            nonlocal place
            if self.given_up.is_set() or place >= self._end(stop):
                return
            with contextlib.closing(self._body(place, stop)) as body:
                while chunk := body.read(_CHUNK):
                    if self.given_up.is_set():
                        return
                    _write(self._file, chunk, place)
                    place += len(chunk)
            if place < self._end(stop):
                raise ConnectionError(f"the answer ended before byte {self._end(stop):,}")

        try:
            self._repeat(get)
        except aws.ClientError as refused:
            empty = error_code(refused) in ("InvalidRange", "416")
            if self.known.done() or not empty:  # no range lies in an object of zero bytes
                raise

    def _end(self, stop: int) -> int:
        return min(stop, self.known.result()[0]) if self.known.done() else stop

    def _body(self, place: int, stop: int) -> Any:
        """The open answer to a read of [place, stop)."""
        version = {"IfMatch": self.known.result()[1]} if self.known.done() else {}
        answer = self._get(Range=f"bytes={place}-{stop - 1}", **version)
        told = str(answer.get("ContentRange", ""))
        if not told.startswith(f"bytes {place}-"):
            answer["Body"].close()
            raise ValueError(
                f"the server answers a read of bytes {place} to {stop - 1} with {told!r}: it does "
                "not know ranged reads; give --loader.fetch-streams 1"
            )
        if not self.known.done():  # by the first read alone: the others wait for it
            self.known.set_result((int(told.rpartition("/")[2]), answer["ETag"]))
        return answer["Body"]


def _write(file: int, data: bytes, place: int) -> None:
    """Write all of it; a disk that is nearly full takes a part first."""
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, place)
        left, place = left[written:], place + written
