"""The node's copies: fetched once by however many processes, checked, and bounded."""

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.storage.cache import Changed, NodeCache, NoRoom, default_folder
from cluster.storage.local import LocalStorage

ROOT = Path(__file__).parents[3]


class Counted(LocalStorage):
    """A store that says how often it was asked for a file."""

    def download(self, name: str, path: Path, streams: int = 1) -> None:
        with open(self.root / "asked", "a") as asked:
            asked.write(f"{name}\n")
        super().download(name, path)

    def asked(self) -> int:
        return len((self.root / "asked").read_text().splitlines())


@pytest.fixture
def store(tmp_path: Path) -> Counted:
    root = tmp_path / "store"
    root.mkdir()
    for name in "abc":
        (root / f"{name}.tar").write_bytes(name.encode() * 1000)
    return Counted(root)


def test_a_file_is_fetched_once(store: Counted, tmp_path: Path):
    cache = NodeCache(tmp_path / "cache")
    path = cache.fetch(store, "a.tar")
    assert path.read_bytes() == b"a" * 1000 and path.suffix == ".tar"
    assert cache.fetch(store, "a.tar") == path and store.asked() == 1
    cache.fetch(store, "b.tar", size=1000, sha256=hashlib.sha256(b"b" * 1000).hexdigest())
    assert store.asked() == 2


def test_other_bytes_than_recorded_are_refused_and_not_kept(store: Counted, tmp_path: Path):
    cache = NodeCache(tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(Changed, match=r"a\.tar has 1,000 bytes .* its record says 1,000"):
            cache.fetch(store, "a.tar", size=1000, sha256="0" * 64)
    assert store.asked() == 2
    with pytest.raises(Changed, match="999"):
        cache.fetch(store, "a.tar", size=999)
    assert not list((tmp_path / "cache").rglob("*.tar"))


def test_the_longest_unused_copies_go(store: Counted, tmp_path: Path):
    cache = NodeCache(tmp_path / "cache", limit_gb=2500 / (1 << 30))
    model = cache.path_for("a rewritten model", "")
    model.mkdir(parents=True)
    first, second = cache.fetch(store, "a.tar"), cache.fetch(store, "b.tar")
    os.utime(second, ns=(1, 1))
    third = cache.fetch(store, "c.tar")
    assert first.exists() and third.exists() and not second.exists() and model.is_dir()
    assert cache.fetch(store, "b.tar").read_bytes() == b"b" * 1000


def test_racing_processes_fetch_it_once_and_a_dead_one_leaves_no_lock(
    store: Counted, tmp_path: Path
):
    script = (
        "import sys; from pathlib import Path; from cluster.storage.cache import NodeCache\n"
        "from tests.cluster.storage.test_cache import Counted\n"
        "store, cache = Counted(Path(sys.argv[1])), NodeCache(Path(sys.argv[2]))\n"
        "assert cache.fetch(store, 'a.tar').read_bytes() == b'a' * 1000\n"
    )
    places = [str(store.root), str(tmp_path / "cache")]
    started = [
        subprocess.Popen([sys.executable, "-c", script, *places], cwd=ROOT) for _ in range(4)
    ]
    assert [process.wait() for process in started] == [0] * 4
    assert store.asked() == 1
    killed = "import os\nCounted.download = lambda *_: os.kill(os.getpid(), 9)\n"
    dying = script.replace("store, cache", killed + "store, cache").replace("'a.tar'", "'b.tar'")
    dead = subprocess.run([sys.executable, "-c", dying, *places], cwd=ROOT, check=False)
    assert dead.returncode == -9
    assert NodeCache(tmp_path / "cache").fetch(store, "b.tar").stat().st_size == 1000


def test_what_another_process_fetches_is_passed_over(store: Counted, tmp_path: Path):
    cache = NodeCache(tmp_path / "cache")
    with cache.only_one(cache.path_for(f"{store.url}/a.tar\0-1\0", ".tar")):
        assert not cache.fetch_unless_busy(store, "a.tar")
        assert cache.fetch_unless_busy(store, "b.tar") and store.asked() == 1
    assert cache.fetch_unless_busy(store, "a.tar") and store.asked() == 2
    assert cache.fetch_unless_busy(store, "a.tar") and store.asked() == 2


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk needs a mount, which is refused here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_costs_other_copies_and_then_says_so(
    store: Counted, small_disk: Path, tmp_path: Path
):
    cache = NodeCache(small_disk)
    for name, count in (("d", 40_000), ("e", 40_000), ("f", 80_000)):
        (store.root / f"{name}.tar").write_bytes(name.encode() * count)
    first = cache.fetch(store, "d.tar")
    second = cache.fetch(store, "e.tar")
    assert second.stat().st_size == 40_000 and not first.exists()
    with pytest.raises(NoRoom, match=r"no room for .*f\.tar .*ISTHMUS_CACHE=FOLDER"):
        cache.fetch(store, "f.tar")
    assert not list(small_disk.rglob("*.part"))
    assert cache.fetch(store, "d.tar").stat().st_size == 40_000


def test_nodes_that_share_the_folder_do_not_share_a_file(
    store: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where locks do not reach the other node, as on some NFS: each writes a file of its own."""
    cache = NodeCache(tmp_path / "cache")
    seen: list[str] = []

    class Slow(Counted):
        def download(self, name: str, path: Path, streams: int = 1) -> None:
            super().download(name, path)
            seen.append(path.name)
            if len(seen) == 1:  # meanwhile, on the other node, which does not see our lock
                monkeypatch.setattr("socket.gethostname", lambda: "other.node")
                cache._fill(path.with_name(final.name), self, name, 1000, "")
                monkeypatch.undo()
            assert path.read_bytes() == b"a" * 1000

    final = cache.path_for(f"{store.url}/a.tar\0{1000}\0", ".tar")
    assert cache.fetch(Slow(store.root), "a.tar", 1000).read_bytes() == b"a" * 1000
    assert len(set(seen)) == 2 and not list((tmp_path / "cache").rglob("*.part"))


def test_what_a_dead_process_left_is_removed(store: Counted, tmp_path: Path):
    cache = NodeCache(tmp_path / "cache")
    final = cache.path_for(f"{store.url}/a.tar\0{-1}\0", ".tar")
    final.parent.mkdir(parents=True)
    host = socket.gethostname().replace(".", "-")
    names = [f".{final.name}.{who}.7.7.part" for who in (host, "old", "new")]
    for name in names:
        (final.parent / name).touch()
    os.utime(final.parent / names[1], (1, 1))
    cache.fetch(store, "a.tar")
    assert [path.name for path in final.parent.glob(".*.part")] == [names[2]]


def test_where_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ISTHMUS_CACHE", "/somewhere")
    assert default_folder() == Path("/somewhere")
    monkeypatch.delenv("ISTHMUS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_folder() == Path("/cache/isthmus")
