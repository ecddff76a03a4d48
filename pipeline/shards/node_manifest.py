"""The commit records of a remote output, read once a node and kept in its cache.

All ranks list the records, a thousand in a request; one process of each node reads what they say.
``manifest.parquet`` cannot stand in for them: nothing in it shows that it is of these very records.
"""

import hashlib
import json
from dataclasses import asdict

from cluster.storage.base import Storage
from cluster.storage.cache import NodeCache
from pipeline.shards.manifest import Commit, read_records, record_entries
from pipeline.text import to_json


def committed_once(storage: Storage, cache: NodeCache) -> list[Commit]:
    """The committed shards of an output, by name, as ``manifest.committed`` gives them.

    Raises:
        ValueError: a record cannot be read; the message names it.
    """
    entries = record_entries(storage)
    if not entries:
        return []
    listed = to_json([(entry.name, entry.size, entry.etag) for entry in entries])
    identity = f"commits 1\0{storage.url}\0{hashlib.sha256(listed).hexdigest()}"
    kept = cache.path_for(identity, ".json")
    with cache.only_one(kept):
        if not kept.is_file():
            commits = read_records(storage, entries)
            cache.keep(kept, to_json([asdict(commit) for commit in commits]))
            return commits
        found = json.loads(kept.read_bytes())
    return [Commit(**record) for record in found]
