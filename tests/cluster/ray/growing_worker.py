"""A map over a Ray that has no model node yet: run by test_nodes.py, prints what it saw.

    python tests/cluster/ray/growing_worker.py gpu     the head has CPUs, a node with a GPU comes
    python tests/cluster/ray/growing_worker.py auto    nobody says what the device is
    python tests/cluster/ray/growing_worker.py cpu     the head has less memory than an item takes

Nodes are Ray's own on this machine; their GPUs exist for Ray's book-keeping only, so that a worker
finds that torch sees none. This process plays the autoscaler: it adds a node once the job asks for
one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[3])
    # Ray reads these once, when it is imported.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef" * 4)

import ray
from ray.cluster_utils import Cluster

from cluster.ray.map import Stages, map_shards
from cluster.ray.session import RayConfig, session

ROOT = Path(__file__).resolve().parents[3]
STORE = 100 << 20


class Echo:
    def process(self, sent: str) -> str:
        return sent


def prepare(item: int) -> tuple[str, str]:
    """The node that it runs on, as both results."""
    node = ray.get_runtime_context().get_node_id()
    return node, node


def finish(kept: str, processed: str) -> list[str]:
    return [kept, processed]


def memory(item: int) -> int:
    return 3 << 30


def driver(device: Any, address: str) -> None:
    """The map, as a job on the cluster; what it saw goes to stdout, as JSON."""
    found: dict[str, Any] = {}
    config = RayConfig(address=address, device=device, workers=3)
    results: dict[int, list[str]] = {}
    try:
        with session(config, ROOT) as resources:
            found["device"] = resources.device
            stages: Any = Stages(prepare, Echo, finish, memory=memory)
            map_shards(range(6), stages, config, resources, results.__setitem__)
        found["results"] = results
    except ValueError as told:
        found["error"] = str(told)
    print(json.dumps(found), flush=True)


def main(device: str) -> None:
    """The cluster around the job; plays the autoscaler once the job says that it waits."""
    head = {"num_cpus": 4, "memory": 1 << 30, "object_store_memory": STORE}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        if device == "cpu":
            made.add_node(num_cpus=3, memory=4 << 30, object_store_memory=STORE)
        print(json.dumps({"head": made.head_node.node_id}), flush=True)
        command = [sys.executable, __file__, device, made.address]
        job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert job.stdout is not None
        for line in job.stdout:
            print(line, end="", flush=True)
            if line.startswith("waiting for a node"):
                kinds = {"accelerator_type:A10G": 1}
                made.add_node(num_cpus=2, num_gpus=1, resources=kinds, object_store_memory=STORE)
        job.wait()
    finally:
        made.shutdown()


if __name__ == "__main__":
    driver(*sys.argv[1:]) if len(sys.argv) > 2 else main(sys.argv[1])
