"""S3 (and what speaks its protocol) as a tree of immutable files.

Publishing is one conditional write: ``If-None-Match: *`` creates the object or answers 412, so of
any number of racing writers exactly one wins and a partial object never stands at a final name.
Every call is repeated with growing pauses while the fault looks passing (5xx, SlowDown, a reset, a
stall, a body cut short); a body is taken up again where it broke off. Endpoint, region and
credentials come the usual AWS way: ``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``AWS_PROFILE``, ...
"""

import base64
import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from botocore import exceptions as aws

from cluster.storage.base import Conflict, Entry, check_name
from cluster.storage.ranges import download_ranges
from cluster.storage.s3_requests import S3Config, error_code, repeat
from cluster.storage.s3_requests import client as _client

Result = TypeVar("Result")
_CHUNK = 1 << 20
_ABANDONED = timedelta(days=1)


@dataclass(frozen=True)
class S3Storage:
    """The objects below ``s3://bucket/prefix``. Small: it is pickled to workers as it is."""

    bucket: str
    prefix: str
    config: S3Config = field(default_factory=S3Config)

    @property
    def url(self) -> str:
        """The URL, as ``open_storage`` takes it."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def exists(self, name: str) -> bool:
        return self._head(name) is not None

    def read(self, name: str) -> bytes:
        sink = io.BytesIO()
        self._download(name, sink)
        return sink.getvalue()

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``: fewer only where the object ends."""
        if length <= 0:
            return b""
        span = f"bytes={offset}-{offset + length - 1}"

        def get() -> bytes:
            answer = self._client.get_object(**self._at(name), Range=span)
            with contextlib.closing(answer["Body"]) as body:
                return body.read()

        try:
            return self._call(name, get)
        except aws.ClientError as refused:
            if error_code(refused) in ("InvalidRange", "416"):
                return b""
            raise self._explained(name, refused) from refused

    def entries(self, folder: str = "", deep: bool = False) -> list[Entry]:
        """Objects in ``folder`` (``deep``: and below it) with size and ETag, sorted by name."""
        start = self._key(folder) if folder else self.prefix
        start = f"{start.rstrip('/')}/" if start else ""
        query: dict[str, Any] = {"Bucket": self.bucket, "Prefix": start}
        if not deep:
            query["Delimiter"] = "/"
        found: list[Entry] = []
        while True:
            page = self._ask(folder or ".", self._client.list_objects_v2, **query)
            for item in page.get("Contents", ()):
                name = item["Key"].removeprefix(f"{self.prefix}/" if self.prefix else "")
                if not name.endswith("/"):
                    found.append(Entry(name, item["Size"], item["ETag"].strip('"')))
            if not page.get("IsTruncated"):
                return sorted(found, key=lambda entry: entry.name)
            query["ContinuationToken"] = page["NextContinuationToken"]

    @contextlib.contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """The object as a file for as long as the context lasts; memory holds one chunk of it.

        Raises:
            FileNotFoundError: no such object.
        """
        with tempfile.NamedTemporaryFile(prefix="isthmus-", suffix=Path(name).suffix) as file:
            self._download(name, file)
            file.flush()
            yield Path(file.name)

    def download(self, name: str, path: Path, streams: int = 1) -> None:
        """Write the object to a new local file; the caller renames it when it is whole.

        Args:
            streams: ranged reads at the same time; 1: one read of the whole object.
        """
        with open(path, "wb") as file:
            if streams == 1:
                return self._download(name, file)
            try:
                download_ranges(
                    partial(self._client.get_object, **self._at(name)),
                    partial(self._call, name),
                    file.fileno(),
                    streams,
                )
            except aws.ClientError as refused:
                raise self._explained(name, refused) from refused

    def publish(self, name: str, data: bytes) -> bool:
        """Create ``name`` with exactly ``data``.

        Returns:
            True if this call created it, False if it was already there with the same bytes (also
            when an earlier try of this call had arrived and only its answer was lost).

        Raises:
            Conflict: it is there with other bytes.
            ValueError: the server refuses (credentials, bucket, no conditional writes).
        """
        try:
            if len(data) < self.config.multipart:
                checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
                send = self._client.put_object
                target = self._at(name)
                self._call(
                    name,
                    lambda: send(**target, Body=data, IfNoneMatch="*", ChecksumSHA256=checksum),
                )
            else:
                size = self.config.part
                chunks = (data[first : first + size] for first in range(0, len(data), size))
                self._send_parts(name, chunks, IfNoneMatch="*")
        except aws.ClientError as refused:
            if error_code(refused) not in ("PreconditionFailed", "412"):
                raise self._explained(name, refused) from refused
            self._compare(name, data)
            return False
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Write a derived file, such as the gallery, that later calls may replace; atomically."""
        self._ask(name, self._client.put_object, **self._at(name), Body=data)

    def upload(self, name: str, path: Path) -> None:
        """Write a file that may be rewritten; memory holds one part of it. Its checksum goes along.

        Raises:
            ValueError: the server refuses (credentials, bucket).
        """
        try:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size < self.config.part:
                    self._replace_checked(name, file.read())
                else:
                    parts = iter(lambda: file.read(self.config.part), b"")
                    self._send_parts(name, parts)
        except aws.ClientError as refused:
            raise self._explained(name, refused) from refused

    def remove(self, name: str) -> None:
        """Delete an object; it may be gone already."""
        self._ask(name, self._client.delete_object, **self._at(name))

    def sweep(self) -> None:
        """Abandon multipart uploads that nobody finished for a day: they cost money unseen."""
        query = {"Bucket": self.bucket, "Prefix": self.prefix}
        uploads = self._ask(".", self._client.list_multipart_uploads, **query).get("Uploads", ())
        for upload in uploads:
            if datetime.now(UTC) - upload["Initiated"] > _ABANDONED:
                self._abandon(upload["Key"], upload["UploadId"])

    # ------------------------------------------------------------------------- inside

    @property
    def _client(self) -> Any:
        return _client(os.getpid(), self.config.timeout)

    def _key(self, name: str) -> str:
        check_name(name)
        return f"{self.prefix}/{name}" if self.prefix else name

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._key(name)}

    def _head(self, name: str) -> dict[str, Any] | None:
        try:
            head = self._client.head_object
            return self._call(name, lambda: head(**self._at(name), ChecksumMode="ENABLED"))
        except aws.ClientError as refused:
            if error_code(refused) in ("404", "NoSuchKey"):
                return None
            raise self._explained(name, refused) from refused

    def _download(self, name: str, sink: IO[bytes]) -> None:
        """Append the object to ``sink``; after a break, go on where it was, in the same version."""
        start = sink.tell()
        version: dict[str, str] = {}

        def get() -> None:
            done = sink.tell() - start
            span = {"Range": f"bytes={done}-"} if done else {}
            answer = self._client.get_object(**self._at(name), **span, **version)
            version["IfMatch"] = answer["ETag"]
            try:
                with contextlib.closing(answer["Body"]) as body:
                    while chunk := body.read(_CHUNK):
                        sink.write(chunk)
            except aws.FlexibleChecksumError:  # all came, but not as it was stored: from the start
                sink.seek(start)
                sink.truncate()
                raise

        try:
            self._call(name, get)
        except aws.ClientError as refused:
            # Everything had come when the connection broke: nothing is left to ask for.
            if error_code(refused) in ("InvalidRange", "416") and version:
                return
            raise self._explained(name, refused) from refused

    def _replace_checked(self, name: str, data: bytes) -> None:
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        send, target = self._client.put_object, self._at(name)
        self._call(name, lambda: send(**target, Body=data, ChecksumSHA256=checksum))

    def _send_parts(self, name: str, chunks: Iterable[bytes], **condition: str) -> None:
        target, client = self._at(name), self._client
        upload = self._call(
            name, lambda: client.create_multipart_upload(**target, ChecksumAlgorithm="SHA256")
        )["UploadId"]
        try:
            parts = [
                self._send_part(name, upload, number, chunk)
                for number, chunk in enumerate(chunks, start=1)
            ]
            self._call(
                name,
                lambda: client.complete_multipart_upload(
                    **target,
                    UploadId=upload,
                    MultipartUpload={"Parts": parts},
                    **condition,
                ),
            )
        except BaseException:
            self._abandon(target["Key"], upload)
            raise

    def _send_part(self, name: str, upload: str, number: int, data: bytes) -> dict[str, Any]:
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        answer = self._call(
            name,
            lambda: self._client.upload_part(
                **self._at(name),
                UploadId=upload,
                PartNumber=number,
                Body=data,
                ChecksumSHA256=checksum,
            ),
        )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

    def _abandon(self, key: str, upload: str) -> None:
        with contextlib.suppress(aws.ClientError):  # it may be gone already
            self._call(
                key,
                lambda: self._client.abort_multipart_upload(
                    Bucket=self.bucket, Key=key, UploadId=upload
                ),
            )

    def _compare(self, name: str, data: bytes) -> None:
        head = self._head(name) or {}
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        if head.get("ChecksumSHA256") == checksum:
            return
        existing = self.read(name)
        if existing != data:
            raise Conflict.between(f"{self.url}/{name}", existing, data)

    def _ask(self, name: str, request: Callable[..., Result], **arguments: Any) -> Result:
        try:
            return self._call(name, lambda: request(**arguments))
        except aws.ClientError as refused:
            raise self._explained(name, refused) from refused

    def _call(self, name: str, request: Callable[[], Result]) -> Result:
        return repeat(request, self.config, store=self.url, name=name)

    def _explained(self, name: str, refused: aws.ClientError) -> Exception:
        where, code = f"{self.url}/{name}", error_code(refused)
        if code in ("NoSuchKey", "404"):
            return FileNotFoundError(f"{where}: no such object")
        if code == "NoSuchBucket":
            return ValueError(f"{where}: there is no bucket {self.bucket!r}; create it")
        if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
            return ValueError(
                f"{where}: access denied ({code}); the credentials in use may not do this here"
            )
        if code in ("NotImplemented", "501"):
            return ValueError(
                f"{where}: this server has no conditional writes (If-None-Match), without which "
                "two writers could overwrite each other; use one that has"
            )
        return ValueError(f"{where}: {refused}")
