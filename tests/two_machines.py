"""Two machines on this one: network namespaces with a link between them, and own hosts files.

As on many real machines, each one's own name leads to 127.0.1.1, and only that of the other one to
an address.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("node-a", "node-b")


@dataclass
class Machines:
    """Two namespaces of the names ``prefix-a`` and ``prefix-b``."""

    prefix: str

    def name(self, index: int) -> str:
        return f"{self.prefix}-{'ab'[index]}"

    def inside(self, index: int, command: list[str]) -> list[str]:
        """The command line that runs a command on a machine."""
        return ["ip", "netns", "exec", self.name(index), *command]

    def link(self, state: str) -> None:
        """Cut the link (``down``) or mend it (``up``)."""
        _ip("-n", self.name(0), "link", "set", f"{self.prefix}a", state)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def two_machines() -> Iterator[Machines]:
    """Make them; skips the test where this machine does not allow it."""
    made = Machines(f"i{os.getpid() % 100_000}")
    folders = [Path("/etc/netns") / made.name(index) for index in (0, 1)]
    if shutil.which("ip") is None:
        pytest.skip("two machines need iproute2's `ip`")
    try:
        try:
            _set_up(made, folders)
        except (subprocess.CalledProcessError, OSError) as refused:
            why = getattr(refused, "stderr", "") or refused
            pytest.skip(f"two machines need network namespaces, which are refused here: {why}")
        yield made
    finally:
        for index, folder in enumerate(folders):
            subprocess.run(
                ["ip", "netns", "del", made.name(index)], check=False, capture_output=True
            )
            shutil.rmtree(folder, ignore_errors=True)


def _set_up(made: Machines, folders: list[Path]) -> None:
    ends = [f"{made.prefix}{letter}" for letter in "ab"]
    for index in (0, 1):
        _ip("netns", "add", made.name(index))
    _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
    for index, (end, folder) in enumerate(zip(ends, folders, strict=True)):
        name = made.name(index)
        _ip("link", "set", end, "netns", name)
        _ip("-n", name, "addr", "add", f"10.77.0.{index + 1}/24", "dev", end)
        for device in (end, "lo"):
            _ip("-n", name, "link", "set", device, "up")
        folder.mkdir(parents=True)
        own = f"127.0.1.1 {os.uname().nodename} {NAMES[index]}"
        other = f"10.77.0.{2 - index} {NAMES[1 - index]}"
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{own}\n{other}\n")
