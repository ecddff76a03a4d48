"""What holds for all tests: nothing of theirs stays in the user's folders."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A node cache of the session's own, for the jobs that tests start too."""
    before = os.environ.get("ISTHMUS_CACHE")
    os.environ["ISTHMUS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("ISTHMUS_CACHE")
    if before is not None:
        os.environ["ISTHMUS_CACHE"] = before
