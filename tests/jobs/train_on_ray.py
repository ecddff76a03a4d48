"""Training on a Ray of two nodes, one of which is killed: run by test_machines.

    python tests/jobs/train_on_ray.py LOG STEP JOB...

Starts ``jobs/launch.py --nodes 2 -- JOB...`` on a cluster of its own, kills a node once the run's
log.jsonl (of the folder LOG) has STEP, adds another, and passes on what the launcher says and its
exit code. With STEP 0 nothing is killed: the launcher gets SIGTERM at step 2 instead.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from tests/jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    # Ray reads these once, when it is imported; what is started from here inherits them.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef" * 4)

from cluster.logfiles import records_so_far
from cluster.runlog import LOG
from tests.chaos_capfilt import cluster

ROOT = Path(__file__).resolve().parents[2]


def wait_for(out: Path, step: int, job: subprocess.Popen) -> None:
    limit = time.monotonic() + 400
    while not any(record["step"] >= step for record in records_so_far(out / LOG)):
        assert job.poll() is None and time.monotonic() < limit
        time.sleep(0.05)


def main(out: Path, step: int, command: list[str]) -> int:
    with cluster() as made:
        nodes = [made.add_node(num_cpus=1, object_store_memory=100 << 20) for _ in range(2)]
        job = subprocess.Popen(
            [sys.executable, "jobs/launch.py", "--nodes", "2", "--", *command],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": made.address, "PYTHONPATH": str(ROOT)},
        )
        try:
            wait_for(out, step or 2, job)
            if step:
                made.remove_node(nodes[1], allow_graceful=False)
                made.add_node(num_cpus=1, object_store_memory=100 << 20)
            else:
                job.send_signal(signal.SIGTERM)
            return job.wait(timeout=400)
        finally:
            job.kill()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
