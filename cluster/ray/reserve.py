"""A wait until the cluster has room for one model worker, which makes an autoscaler start a node.

A run's device is read from its nodes. On a cluster that grows with its work there is none at the
beginning, so a worker's resources are asked for before anything is decided.
"""

import time

import ray
from ray.util.placement_group import placement_group, remove_placement_group

_SAY_EVERY = 30.0


def wait_for_room(bundle: dict[str, float]) -> None:
    """Return once a node has these resources free; says every 30 seconds that it still waits.

    The request belongs to this job: it ends with it, however the job ends, and keeps no node
    running.

    Args:
        bundle: what one worker takes, such as ``{"CPU": 0.5, "GPU": 1}``.
    """
    asked = placement_group([bundle])
    said = -_SAY_EVERY
    try:
        while not asked.wait(timeout_seconds=1):
            if time.monotonic() - said >= _SAY_EVERY:
                said = time.monotonic()
                wanted = ", ".join(f"{number:g} {name}" for name, number in bundle.items())
                print(
                    f"waiting for a node with {wanted}; the cluster has "
                    f"{len(ray.nodes())} node(s) without it (an autoscaler was asked for one)",
                    flush=True,
                )
    finally:
        remove_placement_group(asked)
