"""The bounded map on a real local Ray: all items once, errors as they are, losses made good."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from cluster.ray_map import RayConfig, Resources, Stages, map_shards, session

ROOT = Path(__file__).parents[2]
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


def test_every_item_goes_through_once_and_lost_workers_are_replaced(
    resources: Resources, tmp_path: Path
):
    expected = {i: f"kept {i}: {2 * i}" for i in range(6)}
    assert collect(Stages(prepare, Doubler, finish), resources) == expected
    stages = Stages(prepare, partial(Dying, tmp_path), partial(dying_finish, tmp_path))
    assert collect(stages, resources) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"3", "finish"}


def test_an_error_of_the_application_ends_the_map_as_itself(resources: Resources):
    with pytest.raises(ValueError, match="item 2 is bad: take another"):
        collect(Stages(refuse, Doubler, finish), resources)


def test_the_local_ray_leaves_no_token_behind(resources: Resources):
    assert resources.actors == 1 and resources.device == "cpu"
    assert not (Path.home() / ".ray" / "auth_token").exists() or "RAY_AUTH_TOKEN" in os.environ


def test_no_items_need_no_cluster(resources: Resources):
    assert collect(Stages(prepare, Doubler, finish), resources, count=0) == {}


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"threads": 0}, {"per_actor": 0}])
def test_wrong_settings_are_named(wrong: dict[str, int]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RayConfig(**wrong)
