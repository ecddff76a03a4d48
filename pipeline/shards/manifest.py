"""Commit records: the shards of an output that are done, and the manifest made from them.

A shard is done when its record ``shards/NAME_stats.json`` is there. The tar and the parquet are
published before it, and readers trust nothing without a record.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage.base import Conflict, Entry, Storage
from cluster.storage.open import open_storage
from pipeline.text import to_json

SHARDS, MANIFEST, SIZES = "shards", "manifest.parquet", "sizes.json"
_RECORD = "_stats.json"
_READERS = 32


@dataclass(frozen=True, slots=True)
class Commit:
    """The record of a committed shard.

    Attributes:
        name: name of the shard.
        n: number of inputs, each a row of the parquet.
        ok: inputs that are samples in the tar.
        filtered: inputs that a filter dropped.
        failed: inputs that could not be used.
        reasons: number of dropped inputs by reason.
        web_won: samples whose web caption ranked first.
        tar_sha256, parquet_sha256: hex digests of the two files.
        tar, parquet: names of the two files in the output.
        tar_path, parquet_path: the same with the output's path or URL.
        tar_bytes: size of the tar.
        seconds: wall time by stage.
        retry_of: for a retry, the shard that its inputs were dropped from.
        retried: for a retry, its inputs by the reason that they had been dropped for.
        retried_status: for a retry, its inputs by their status until then.
        unlooked: inputs that lack a column that a filter reads, by column.
    """

    name: str
    n: int
    ok: int
    filtered: int
    failed: int
    reasons: dict[str, int]
    web_won: int
    tar_sha256: str
    parquet_sha256: str
    tar: str
    parquet: str
    tar_path: str
    parquet_path: str
    tar_bytes: int
    seconds: dict[str, float] = field(default_factory=dict)
    retry_of: str = ""
    retried: dict[str, int] = field(default_factory=dict)
    retried_status: dict[str, int] = field(default_factory=dict)
    unlooked: dict[str, int] = field(default_factory=dict)


def commit_shard(
    storage: Storage, name: str, tar: bytes, parquet: bytes, stats: dict[str, Any]
) -> bool:
    """Publish tar, parquet and record, in this order.

    Wall times (``stats["seconds"]``) are the only thing two attempts may differ in: the first
    record stays. Files without a record are an attempt that was lost. Where its bytes differ, as
    those of a GPU may in their last bits, this attempt's files get names of their own, which its
    record holds: nobody reads the lost ones, and nobody who is about to commit them is disturbed.

    Returns:
        True if this attempt wrote the record, False if another one had.

    Raises:
        Conflict: another attempt committed different bytes.
    """
    base, files = f"{SHARDS}/{name}", {"tar": tar, "parquet": parquet}
    digests = {kind: hashlib.sha256(data).hexdigest() for kind, data in files.items()}
    own: dict[str, str] = {}
    for kind, data in files.items():
        try:
            storage.publish(f"{base}.{kind}", data)
        except Conflict:
            if is_committed(storage, name):
                record = json.loads(storage.read(base + _RECORD))
                if record[f"{kind}_sha256"] != digests[kind]:
                    raise
            own[kind] = f"{base}-{digests[kind][:12]}.{kind}"
            storage.publish(own[kind], data)
    record = {
        **stats,
        "name": name,
        **{f"{kind}_sha256": digest for kind, digest in digests.items()},
        "tar_bytes": len(tar),
        **own,
    }
    try:
        return storage.publish(base + _RECORD, to_json(record))
    except Conflict as taken:
        if _without_seconds(json.loads(taken.existing)) == _without_seconds(record):
            return False
        raise


def _without_seconds(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "seconds"}


def committed(out_url: str) -> list[Commit]:
    """The committed shards of an output, by name; [] where nothing is committed yet.

    Raises:
        ValueError: a record cannot be read; the message names it.
    """
    storage = open_storage(out_url)
    return read_records(storage, record_entries(storage))


def record_entries(storage: Storage) -> list[Entry]:
    """The files of the commit records, sorted by the names of their shards."""
    found = [entry for entry in storage.entries(SHARDS) if entry.name.endswith(_RECORD)]
    return sorted(found, key=lambda entry: entry.name.removesuffix(_RECORD))


def read_records(storage: Storage, entries: Sequence[Entry]) -> list[Commit]:
    """What commit records say.

    Raises:
        ValueError: a record cannot be read; the message names it.
    """
    with ThreadPoolExecutor(_READERS) as readers:  # on S3 a record costs a round trip
        return list(readers.map(partial(_read_record, storage), [entry.name for entry in entries]))


def committed_names(storage: Storage) -> set[str]:
    """Names of the committed shards, from the listing alone: one call a thousand files on S3."""
    names = (entry.name.removeprefix(f"{SHARDS}/") for entry in record_entries(storage))
    return {name.removesuffix(_RECORD) for name in names}


def is_committed(storage: Storage, name: str) -> bool:
    """Whether this shard is done."""
    return storage.exists(f"{SHARDS}/{name}{_RECORD}")


def _read_record(storage: Storage, path: str) -> Commit:
    try:
        record = json.loads(storage.read(path))
        base = path.removesuffix(_RECORD)
        tar, parquet = (record.get(kind, f"{base}.{kind}") for kind in ("tar", "parquet"))
        return Commit(
            name=record["name"],
            n=record["n"],
            ok=record["ok"],
            filtered=record["filtered"],
            failed=record["failed"],
            reasons=record["reasons"],
            web_won=record["web_won"],
            tar_sha256=record["tar_sha256"],
            parquet_sha256=record["parquet_sha256"],
            tar=tar,
            parquet=parquet,
            tar_path=f"{storage.url}/{tar}",
            parquet_path=f"{storage.url}/{parquet}",
            tar_bytes=record["tar_bytes"],
            seconds=record.get("seconds", {}),
            retry_of=record.get("retry_of", ""),
            retried=record.get("retried", {}),
            retried_status=record.get("retried_status", {}),
            unlooked=record.get("unlooked", {}),
        )
    except (KeyError, TypeError, json.JSONDecodeError) as broken:
        raise ValueError(
            f"commit record {storage.url}/{path} is unreadable ({broken!r}); "
            "remove it and run the stage again"
        ) from broken


def manifest_hash(commits: Sequence[Commit]) -> str:
    """One hash of what is committed: names, counts, content; not of where it lies or when."""
    content = [(c.name, c.n, c.ok, c.tar_sha256, c.parquet_sha256) for c in commits]
    return hashlib.sha256(to_json(sorted(content))).hexdigest()


def compact(storage: Storage, commits: Sequence[Commit]) -> None:
    """Write ``manifest.parquet`` and webdataset's ``sizes.json`` from the records."""
    columns = ("name", "n", "ok", "web_won", "tar", "parquet", "tar_sha256", "parquet_sha256")
    table = pa.table({name: [getattr(c, name) for c in commits] for name in columns})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.replace(MANIFEST, sink.getvalue().to_pybytes())
    storage.replace(SIZES, to_json({c.tar.rpartition("/")[2]: c.ok for c in commits}))
