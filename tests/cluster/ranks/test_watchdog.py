"""A process that stands still ends by itself, with its stacks; one that goes on does not."""

import subprocess
import sys
from pathlib import Path

from cluster.ranks.watchdog import EXIT_CODE

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys, threading, time
from cluster.ranks.watchdog import Watchdog

dog = Watchdog(1.0, rank=3)
def stuck_in_a_collective():
    threading.Event().wait()
for _ in range(6):
    dog.beat("in step 7")
    time.sleep(0.3)
print("still here", flush=True)
if sys.argv[1] == "hang":
    stuck_in_a_collective()
dog.stop()
time.sleep(2)
"""


def run(how: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_stuck_process_ends_with_its_stacks():
    done = run("hang")
    assert done.returncode == EXIT_CODE and "still here" in done.stdout
    assert "rank 3 has been in step 7 for 1 s" in done.stderr
    assert "in stuck_in_a_collective" in done.stderr


def test_one_that_goes_on_or_is_done_is_left_alone():
    assert run("end").returncode == 0
