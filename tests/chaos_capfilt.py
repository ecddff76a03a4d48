"""CapFilt under fire: driver, model actors, tasks and whole nodes killed at random, S3 misbehaving.

    python tests/chaos_capfilt.py --seeds 10 --shards 60 --kills 30            # local disk and S3
    python tests/chaos_capfilt.py --seeds 1 --shards 12 --kills 6 --where s3

A Ray of several nodes on this machine (Ray's cluster utility); the S3 is moto behind a proxy that
breaks 5 % of the requests. After the kills the job runs to its end, and its output must equal that
of one undisturbed run byte for byte, with nothing for ``verify`` to find.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the clone, not from tests/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    # Ray reads these once, when it is imported; the jobs started from here inherit them.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef" * 4)

import psutil
import pytest
from ray.cluster_utils import Cluster

from cluster.storage.open import open_storage
from cluster.storage.s3 import _client
from pipeline.shards.manifest import committed_names
from tests.faulty_s3 import BUCKET, Faults, faulty_proxy, s3_server
from tests.pipeline.sources.test_sources import tar, trio
from tests.tiny_models import save_captioner, save_clip

ROOT = Path(__file__).parents[1]
NODES = 2
LIMIT = 1800  # seconds in which a run must come to its end
KINDS = ("driver", "actor", "actor", "task", "task", "node")
FAULTS = {"error_500": 0.01, "slow_down": 0.01, "reset": 0.01, "truncated": 0.01}


@dataclass
class Chaos:
    """One run of the job on a cluster of its own, and what is done to it.

    The kills come as the work proceeds, all of them before half of the shards are done.
    """

    command: list[str]
    out: str
    shards: int
    seed: int
    kills: int
    done: Counter[str] = field(default_factory=Counter)
    starts: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def run(self) -> None:
        """Kill until it is enough, then let the job end.

        Raises:
            AssertionError: the job failed by itself, or did not end in time.
        """
        end = time.monotonic() + LIMIT
        with cluster() as self.cluster:
            self.nodes = [self._node() for _ in range(NODES)]
            job = self._start()
            while (kills := sum(self.done.values())) < self.kills:
                time.sleep(self.random.uniform(0.1, 2.0))
                self._wait_for(kills * self.shards // (2 * self.kills), job)
                assert job.poll() is None, (self.log.read_text()[-3000:], self.done)
                if len(self.nodes) < NODES and self.random.random() < 0.25:
                    self.nodes.append(self._node())
                if self._kill(self.random.choice(KINDS), job) == "driver":
                    job = self._start()
                assert time.monotonic() < end, "the run does not end"
            while job.poll() is None:
                assert time.monotonic() < end, "the run does not end"
                time.sleep(0.2)
            assert job.returncode == 0, (self.log.read_text()[-3000:], self.done)

    def _wait_for(self, shards: int, job: subprocess.Popen, longest: float = 10.0) -> None:
        """Until so many shards are committed; not for ever: starting up is a moment like any."""
        late, store = time.monotonic() + longest, open_storage(self.out)
        while job.poll() is None and time.monotonic() < late:
            if len(committed_names(store)) >= shards:
                return
            time.sleep(0.5)

    def _node(self) -> Any:
        return self.cluster.add_node(num_cpus=2, object_store_memory=200 << 20)

    def _start(self) -> subprocess.Popen:
        self.starts += 1
        self.log = Path(tempfile.gettempdir()) / f"chaos-{os.getpid()}-{self.starts}.log"
        with open(self.log, "w") as log:
            environment = {**os.environ, "RAY_ADDRESS": self.cluster.address}
            return subprocess.Popen(
                self.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def _kill(self, kind: str, job: subprocess.Popen) -> str:
        if kind == "driver":
            job.send_signal(signal.SIGKILL)
            job.wait()
        elif kind == "node":
            node = self.nodes.pop(self.random.randrange(len(self.nodes)))
            self.cluster.remove_node(node, allow_graceful=False)
            if not self.nodes or self.random.random() < 0.5:  # else the run goes on without it
                self.nodes.append(self._node())
        else:
            title = "ray::_Holder" if kind == "actor" else "ray::call"
            found = [p for p in workers(self.cluster) if p.info["cmdline"][0].startswith(title)]
            if not found:
                return ""
            with contextlib.suppress(psutil.NoSuchProcess):
                self.random.choice(found).kill()
        self.done[kind] += 1
        return kind


def workers(of: Cluster) -> list[psutil.Process]:
    """Ray's worker processes of this cluster, and of no other on the machine."""
    raylets = {process.pid for node in of.list_all_nodes() for process in _raylets(node)}
    found = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        if process.info["cmdline"] and process.info["ppid"] in raylets:
            found.append(process)
    return found


def _raylets(node: Any) -> list[Any]:
    return [info.process for info in node.all_processes.get("raylet", ())]


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A head that runs nothing; nodes are added by the caller."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        yield made
    finally:
        made.shutdown()


def make_world(folder: Path, shards: int) -> tuple[Path, list[str]]:
    """Tars of six samples, some of them bad, and the options that name the tiny models."""
    web = folder / "web"
    web.mkdir(parents=True)
    for shard in range(shards):
        members = [m for i in range(6) for m in trio(f"{shard:05d}{i:04d}")]
        if shard % 5 == 1:
            members[3] = (members[3][0], b"<html>")
        data = tar(web / f"{shard:05d}.tar", members)
        if shard % 7 == 2:
            (web / f"{shard:05d}.tar").write_bytes(data[: 3 * 5 * 512 + 700])
    captioner, ranker = save_captioner(folder / "captioner"), save_clip(folder / "clip")
    options = ["--config.captioner", str(captioner), "--config.ranker", str(ranker)]
    return web, [*options, "--config.batch-size", "4", "--source", "web", "--gallery", "0"]


def job(web: str, out: str, options: list[str], *more: str) -> list[str]:
    """The job's command line."""
    paths = ["--input", web, "--output", out, "--device", "cpu"]
    return [sys.executable, "jobs/capfilt.py", "--recipe", "tinyworld", *paths, *options, *more]


def content(out: str) -> dict[str, Any]:
    """Every byte of an output; records without their wall times, the plan without its etags."""
    store = open_storage(out)
    found: dict[str, Any] = {}
    for entry in store.entries(deep=True):
        data: Any = store.read(entry.name)
        if entry.name.endswith("_stats.json"):
            data = {k: v for k, v in json.loads(data).items() if k != "seconds"}
        if entry.name == "plan.json":
            plan = json.loads(data)
            data = (plan["fingerprint"], [item["input"] for item in plan["inputs"]])
        found[entry.name] = data
    return found


def undisturbed(folder: Path, web: Path, options: list[str]) -> dict[str, Any]:
    """What one run gives that nobody disturbs."""
    out = str(folder / "undisturbed")
    subprocess.run(job(str(web), out, options, "--workers", "2"), cwd=ROOT, check=True)
    return content(out)


def check(chaos: Chaos, out: str, expected: dict[str, Any]) -> None:
    """Hold the output against the undisturbed one."""
    found = content(out)
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())[:5]
    different = [name for name in expected if found[name] != expected[name]]
    assert not different, different[:5]
    verify = [sys.executable, "jobs/capfilt.py", "verify", "--output", out]
    said = subprocess.run(verify, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode == 0 and "nothing is wrong" in said.stdout, said.stdout + said.stderr
    print(f"seed {chaos.seed}: {out} equals the undisturbed run after {dict(chaos.done)} kills")


def on_disk(folder: Path, web: Path, options: list[str], seed: int, kills: int) -> Chaos:
    """One seed on local disk."""
    out = str(folder / f"out{seed}")
    chaos = Chaos(job(str(web), out, options), out, len(list(web.iterdir())), seed, kills)
    chaos.run()
    return chaos


def on_s3(web: Path, options: list[str], seed: int, kills: int, expected: dict[str, Any]) -> Chaos:
    """One seed on S3, from upload to comparison."""
    faults = Faults(**FAULTS, lost_answer=0.005, stall=0.005)
    with (
        pytest.MonkeyPatch.context() as patch,
        s3_server(patch) as server,
        faulty_proxy(server, faults) as url,
    ):
        _client.cache_clear()  # the seed before had another server
        store = open_storage(f"s3://{BUCKET}/web")
        for path in sorted(web.iterdir()):
            store.replace(path.name, path.read_bytes())
        patch.setenv("AWS_ENDPOINT_URL", url)
        out = f"s3://{BUCKET}/out"
        command = job(f"s3://{BUCKET}/web", out, options)
        chaos = Chaos(command, out, len(list(web.iterdir())), seed, kills)
        chaos.run()
        print(f"faults on the way to S3: {dict(faults.happened)}")
        check(chaos, out, expected)
    return chaos


def main() -> None:
    """Every seed on every store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--shards", type=int, default=60)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--where", choices=("disk", "s3"), nargs="+", default=["disk", "s3"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as made:
        folder = Path(made)
        web, options = make_world(folder, args.shards)
        expected = undisturbed(folder, web, options)
        for seed in range(args.first, args.first + args.seeds):
            if "disk" in args.where:
                chaos = on_disk(folder, web, options, seed, args.kills)
                check(chaos, str(folder / f"out{seed}"), expected)
            if "s3" in args.where:
                on_s3(web, options, seed, args.kills, expected)


if __name__ == "__main__":
    main()
