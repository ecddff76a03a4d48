"""The plan of an output, ``plan.json``: written once before its first shard, and never changed."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from cluster.storage.base import Conflict, Storage
from pipeline.text import to_json

PLAN = "plan.json"


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """An input shard of the plan.

    Attributes:
        name: name of the output shard that is made of it.
        input: name of the input shard.
        size: bytes of a tar, or number of listed images.
        etag: mark of its content, which changes when the content does.
    """

    name: str
    input: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Everything that decides the bytes of an output.

    Attributes:
        fingerprint: recipe, models, versions and device.
        inputs: the input shards in order.
    """

    fingerprint: dict[str, Any]
    inputs: tuple[PlannedShard, ...]


def open_plan(storage: Storage, plan: OutputPlan) -> OutputPlan:
    """Publish the plan, or accept the equal one that is there.

    Raises:
        ValueError: the output belongs to another plan; the message lists what differs.
    """
    mine = to_json(asdict(plan))
    try:
        storage.publish(PLAN, mine)
    except Conflict as taken:
        theirs = json.loads(taken.existing)
        difference = "; ".join(_differences(theirs, json.loads(mine), ""))
        raise ValueError(
            f"output {storage.url} was started with another plan ({difference}); "
            "give the same recipe and input to resume, or another --output"
        ) from None
    return plan


def _differences(old: Any, new: Any, where: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        found = (_differences(old.get(k), new.get(k), f"{where}.{k}".strip(".")) for k in keys)
        return [line for lines in found for line in lines][:8]
    if isinstance(old, list) and isinstance(new, list) and old != new:
        if len(old) != len(new):
            return [f"{where}: {len(old)} then, {len(new)} now"]
        pairs = zip(old, new, strict=True)
        index = next(i for i, (a, b) in enumerate(pairs) if a != b)
        return _differences(old[index], new[index], f"{where}[{index}]")
    return [] if old == new else [f"{where}: {old!r} then, {new!r} now"]
