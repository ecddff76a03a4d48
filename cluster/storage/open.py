"""The store behind a URL."""

from cluster.storage.base import Storage, local_path
from cluster.storage.local import LocalStorage
from cluster.storage.s3 import S3Storage


def open_storage(url: str) -> Storage:
    """The storage behind ``url``: a local path, ``file://`` or ``s3://bucket/prefix``.

    Raises:
        ValueError: another scheme (``pipe:``, ``http:`` ...), or a bucket without a name.
    """
    if not url.startswith("s3://"):
        return LocalStorage(local_path(url))
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise ValueError(f"storage {url!r}: no bucket; give s3://BUCKET/PREFIX")
    return S3Storage(bucket, prefix.strip("/"))
