"""The bounded map on a real local Ray: all items once, errors as they are, losses made good."""

import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from cluster.ray.map import Bisection, Stages, map_shards, map_tasks
from cluster.ray.session import RayConfig, Resources, session

ROOT = Path(__file__).parents[3]
CONFIG = RayConfig(workers=1, retries=3)


@pytest.fixture(scope="module")
def resources():
    with session(CONFIG, ROOT) as found:
        yield found


class Doubler:
    def process(self, sent: int) -> int:
        return 2 * sent


class Dying:
    """Kills its own process the first time it sees 3."""

    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def process(self, sent: int) -> int:
        mark = self.marks / f"{sent}"
        if sent == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * sent


def prepare(item: int) -> tuple[str, int]:
    return f"kept {item}", item


def finish(kept: str, processed: int) -> str:
    return f"{kept}: {processed}"


def dying_finish(marks: Path, kept: str, processed: int) -> str:
    mark = marks / "finish"
    if processed == 4 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return finish(kept, processed)


def refuse(item: int) -> tuple[str, int]:
    if item == 2:
        raise ValueError("item 2 is bad: take another")
    return prepare(item)


def collect(stages: Stages, resources: Resources, count: int = 6) -> dict[int, str]:
    results: dict[int, str] = {}
    map_shards(range(count), stages, CONFIG, resources, results.__setitem__)
    return results


@pytest.mark.slow
def test_every_item_goes_through_once_and_lost_workers_are_replaced(
    resources: Resources, tmp_path: Path
):
    expected = {i: f"kept {i}: {2 * i}" for i in range(6)}
    assert collect(Stages(prepare, Doubler, finish), resources) == expected
    stages = Stages(prepare, partial(Dying, tmp_path), partial(dying_finish, tmp_path))
    assert collect(stages, resources) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"3", "finish"}


@dataclass(frozen=True)
class Numbers:
    """An item of several parts."""

    parts: tuple[int, ...]
    left_out: frozenset[int] = frozenset()

    def only(self, first: int, end: int) -> "Numbers":
        return Numbers(self.parts[first:end])

    def without(self, parts: frozenset[int]) -> "Numbers":
        return Numbers(self.parts, parts)


class Fragile:
    """Dies of 13, whatever comes with it; every call is written down."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def process(self, sent: tuple[int, ...]) -> int:
        with open(self.log, "a") as log:
            log.write(f"{len(sent)}\n")
        if 13 in sent:
            os.kill(os.getpid(), signal.SIGKILL)
        return sum(sent)


def numbers(item: Numbers) -> tuple[list[int], tuple[int, ...]]:
    kept = tuple(n for place, n in enumerate(item.parts) if place not in item.left_out)
    if 17 in kept:
        os.kill(os.getpid(), signal.SIGKILL)
    return sorted(item.left_out), kept


def name_and_sum(left_out: list[int], processed: int) -> str:
    return f"{processed} without {left_out}"


def count(item: Numbers) -> int:
    return len(item.parts)


@pytest.mark.slow
def test_what_kills_workers_is_found_and_left_out(resources: Resources, tmp_path: Path):
    log = tmp_path / "log"
    items = [Numbers((1, 2, 3)), Numbers((4, 13, 5, 6, 7, 8, 13, 9)), Numbers((10, 17, 11))]
    parts = Bisection(count, Numbers.only, Numbers.without)
    stages = Stages(numbers, partial(Fragile, log), name_and_sum, parts)
    config = RayConfig(workers=1, retries=1)
    results: dict[Numbers, str] = {}
    map_shards(items, stages, config, resources, results.__setitem__)
    said = {item: results[item] for item in items}
    assert list(said.values()) == ["6 without []", "39 without [1, 6]", "21 without [1]"]
    assert "1" in log.read_text().split()  # it went down to single parts


@pytest.mark.slow
def test_an_item_that_kills_as_a_whole_ends_the_map(resources: Resources, tmp_path: Path):
    class Small(Fragile):
        def process(self, sent: tuple[int, ...]) -> int:
            if len(sent) > 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return sum(sent)

    parts = Bisection(count, Numbers.only, Numbers.without)
    stages = Stages(numbers, partial(Small, tmp_path / "log"), name_and_sum, parts)
    config = RayConfig(workers=1, retries=0)
    with pytest.raises(RuntimeError, match="no sample of it is to blame"):
        map_shards([Numbers((1, 2, 3, 4))], stages, config, resources, print)


def test_an_error_of_the_application_ends_the_map_as_itself(resources: Resources):
    with pytest.raises(ValueError, match="item 2 is bad: take another"):
        collect(Stages(refuse, Doubler, finish), resources)


def dying_square(marks: Path, item: int) -> int:
    """Kills its worker the first time it sees 3."""
    mark = marks / f"{item}"
    if item == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def test_tasks_alone_replace_lost_workers(resources: Resources, tmp_path: Path):
    results: dict[int, int] = {}
    map_tasks(range(9), partial(dying_square, tmp_path), CONFIG, results.__setitem__)
    assert results == {i: i * i for i in range(9)} and (tmp_path / "3").exists()
    with pytest.raises(ValueError, match="item 2 is bad"):
        map_tasks(range(4), refuse, CONFIG, results.__setitem__)


def test_the_local_ray_leaves_no_token_behind(resources: Resources):
    assert resources.actors == 1 and resources.device == "cpu"
    assert not (Path.home() / ".ray" / "auth_token").exists() or "RAY_AUTH_TOKEN" in os.environ


def test_no_items_need_no_cluster(resources: Resources):
    assert collect(Stages(prepare, Doubler, finish), resources, count=0) == {}


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"threads": 0}, {"per_actor": 0}])
def test_wrong_settings_are_named(wrong: dict[str, int]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RayConfig(**wrong)


def lose_the_clone(marks: Path, item: int) -> int:
    """Fails where the working directory has been taken away, the first time."""
    mark = marks / f"{item}"
    if item == 3 and not mark.exists():
        mark.touch()
        gone = marks / "clone"
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()
        return len(os.getcwd())
    return item * item


def test_a_worker_without_its_clone_is_lost_not_wrong(resources: Resources, tmp_path: Path):
    results: dict[int, int] = {}
    map_tasks(range(5), partial(lose_the_clone, tmp_path), CONFIG, results.__setitem__)
    assert results == {i: i * i for i in range(5)} and (tmp_path / "3").exists()
