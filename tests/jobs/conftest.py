"""Small checkpoints and a small benchmark, made once for all tests of the folder."""

from pathlib import Path

import pytest

from tests.jobs import tiny_checkpoints


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def stage1_run(tiny_root: Path) -> Path:
    return tiny_checkpoints.save_stage1(tiny_root / "one")


@pytest.fixture(scope="session")
def t5_run(tiny_root: Path) -> Path:
    return tiny_checkpoints.save_stage2(tiny_root / "t5", "t5")


@pytest.fixture(scope="session")
def opt_run(tiny_root: Path) -> Path:
    return tiny_checkpoints.save_stage2(tiny_root / "opt", "opt")


@pytest.fixture(scope="session", params=["t5_run", "opt_run"])
def stage2_run(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def benchmark_data(tiny_root: Path) -> Path:
    return tiny_checkpoints.save_benchmark(tiny_root / "data")
