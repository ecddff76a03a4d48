"""A rank that meets the others and then does nothing but live: run by test_network.

    python -m tests.cluster.ranks.peers_worker LIMIT SECONDS [STOP_AFTER]

Prints gloo's interface and a sum over the ranks; lives for SECONDS; says when it leaves. A rank
with STOP_AFTER stops watching at that second, and lives on.
"""

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from cluster.ranks import network
from cluster.ranks.dist import this_process
from cluster.ranks.peers import Peers


def main(limit: float, seconds: float, stop_after: float) -> None:
    here, wait = this_process(), timedelta(seconds=60)
    store = network.meet(wait)
    dist.init_process_group("gloo", store=store, rank=here.rank, world_size=2, timeout=wait)
    number = torch.ones(1)
    dist.all_reduce(number)
    print(os.environ[network.INTERFACE], int(number), flush=True)
    peers = Peers(here, limit)
    print("living", flush=True)
    time.sleep(stop_after)
    if stop_after < seconds:
        peers.stop()
    time.sleep(seconds - stop_after)
    print("left", flush=True)
    os._exit(0)


if __name__ == "__main__":
    limit, seconds, *rest = map(float, sys.argv[1:])
    main(limit, seconds, rest[0] if rest else seconds)
