"""Keeping freed memory: the second large allocation costs few page faults."""

import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys, torch
from cluster.malloc import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(12):  # the heap first grows: the first six or so allocations fault either way
    torch.ones(16 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, mode], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_freed_memory_is_used_again_with_few_page_faults() -> None:
    assert faults("keep") < faults("leave") / 4
