"""A map over a Ray whose nodes come and go for good: run by test_nodes.py, prints what it saw.

One node of two CPUs begins; one of four comes late; then the first is lost and not replaced.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[3])
    # Ray reads these once, when it is imported.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef" * 4)

import ray
from ray.cluster_utils import Cluster

from cluster.ray.map import Stages, map_shards
from cluster.ray.session import RayConfig, room, session

ITEMS = 60
CONFIG = RayConfig(retries=3)


class Slow:
    """Says on which node it was; after a few items it waits until another node works as well.

    Args:
        seen: folder with an empty file for each node that has worked.
    """

    def __init__(self, seen: Path) -> None:
        self.seen, self.count = seen, 0

    def process(self, sent: int) -> str:
        node = str(ray.get_runtime_context().get_node_id())
        (self.seen / node).touch()
        self.count += 1
        time.sleep(0.4)
        deadline = time.monotonic() + 120
        while self.count > 8 and len(list(self.seen.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        return node


def prepare(item: int) -> tuple[int, int]:
    return item, item


def finish(kept: int, node: str) -> str:
    return node


def main() -> None:
    """Run the map; where its items were processed goes to stdout, as JSON."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    seen = tempfile.mkdtemp()
    try:
        first = made.add_node(num_cpus=2, object_store_memory=100 << 20)
        rooms, places, results = [], [], {}

        def done(item: int, node: str) -> None:
            assert item not in results
            results[item] = node
            if len(results) == 4:
                made.add_node(num_cpus=4, object_store_memory=100 << 20)
            if len(results) >= 4 and len(set(results.values())) == 2 and not places:
                places.append(len(results))
                rooms.append(room(CONFIG, "cpu"))
                made.remove_node(first, allow_graceful=False)

        config = RayConfig(address=made.address, device="cpu")
        with session(config, Path(__file__).parents[3]) as resources:
            rooms.append(resources.actors)
            stages: Any = Stages(prepare, partial(Slow, Path(seen)), finish)
            map_shards(range(ITEMS), stages, CONFIG, resources, done)
            rooms.append(room(CONFIG, "cpu"))
        print(json.dumps({"rooms": rooms, "lost_at": places, "results": results}))
    finally:
        made.shutdown()
        shutil.rmtree(seen)


if __name__ == "__main__":
    main()
