"""Ranks that meet where host names lead to loopback, and notice when one of them falls silent."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.ranks.network import address_towards, interface_of
from cluster.ranks.watchdog import EXIT_CODE
from tests.run_ranks import free_port
from tests.two_machines import NAMES, two_machines

ROOT = Path(__file__).parents[3]
WORKER = [sys.executable, "-m", "tests.cluster.ranks.peers_worker"]


def environment(rank: int, master: str, port: int, machine: int = 0, machines: int = 1):
    named = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": master}
    named |= {"MASTER_PORT": port, "CROSS_RANK": machine, "CROSS_SIZE": machines}
    shared = {k: v for k, v in os.environ.items() if k != "GLOO_SOCKET_IFNAME"}
    return shared | {name: str(value) for name, value in named.items()}


def started(*arguments: list[str], seconds: str) -> list[subprocess.Popen]:
    """Two ranks on this machine, each with its own arguments behind limit and seconds."""
    port = free_port()
    return [
        subprocess.Popen(
            [*WORKER, "4", seconds, *more],
            cwd=ROOT, env=environment(rank, "127.0.0.1", port), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank, more in enumerate(arguments)
    ]  # fmt: skip


def test_interfaces_are_found_by_the_way_to_a_host():
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert interface_of("127.0.0.1") == interface_of("127.0.1.1") == "lo"
    with pytest.raises(ValueError, match=r"MASTER_ADDR no\.such\.host\.invalid: .* no way there"):
        address_towards("no.such.host.invalid")
    with pytest.raises(ValueError, match=r"192\.0\.2\.77 is on no interface"):
        interface_of("192.0.2.77")


def test_machines_whose_names_lead_to_loopback_meet_on_their_link():
    port = free_port()
    with two_machines() as machines:
        ranks = [
            subprocess.Popen(
                machines.inside(index, [*WORKER, "0", "0"]),
                cwd=ROOT, env=environment(index, NAMES[0], port, index, 2), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for index in (0, 1)
        ]  # fmt: skip
        said = [rank.communicate(timeout=180) for rank in ranks]
    for letter, (out, error) in zip("ab", said, strict=True):
        assert out.splitlines()[0] == f"{machines.prefix}{letter} 2", error


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_falls_silent_ends_the_other(victim: int):
    """Stopped, not killed: no connection is closed, as where a machine or its link is gone."""
    ranks = started([], [], seconds="100")
    for rank in ranks:
        assert rank.stdout is not None
        assert [rank.stdout.readline(), rank.stdout.readline()] == ["lo 2\n", "living\n"]
    ranks[victim].send_signal(signal.SIGSTOP)
    try:
        _, error = ranks[1 - victim].communicate(timeout=60)
    finally:
        ranks[victim].kill()
        ranks[victim].communicate()
    assert ranks[1 - victim].returncode == EXIT_CODE
    assert f"rank {1 - victim} has not heard of rank {victim} for 4 s" in error


def test_a_rank_that_leaves_is_not_missed():
    ranks = started([], ["1"], seconds="9")
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert all(out.endswith("left\n") for out, _ in said)
