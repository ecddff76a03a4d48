"""Commands outside `make` where `.venv` is not activated: one line that says what to type."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import cli

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path.name
    for path in (ROOT / "jobs").glob("*.py")
    if "if not __package__" in path.read_text(encoding="utf-8")
)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with an installed `.venv`, other than the one that runs this."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    return tmp_path


def test_nothing_is_said_where_nothing_is_wrong(clone: Path) -> None:
    assert cli.mistake((3, 11, 0), [], clone) == ""
    assert cli.mistake((3, 14, 2), [], clone) == ""


def test_a_venv_that_is_there_is_to_be_activated(clone: Path) -> None:
    line = cli.mistake((3, 11, 7), ["torch", "tyro"], clone)
    assert line.startswith("error: Python 3.11 (")
    assert "lacks torch, tyro" in line
    assert line.endswith(f"run `source {clone}/.venv/bin/activate` first")
    old = cli.mistake((3, 9, 18), [], clone)
    assert "is older than Python 3.11" in old and old.endswith("/.venv/bin/activate` first")


def test_without_a_venv_it_is_to_be_made(tmp_path: Path) -> None:
    assert "run `make setup`, then `source" in cli.mistake((3, 11, 7), ["torch"], tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_checks_before_it_imports_a_package(script: str, tmp_path: Path) -> None:
    """Run by this Python without its packages: -S leaves site-packages out."""
    bare = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-S", ROOT / "jobs" / script, "--help"],
        check=False, cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: Python 3.") and "lacks torch" in line


def test_a_terminal_without_the_character_ends_no_job() -> None:
    code = "from jobs.cli import run; run(lambda: print('caf\\u00e9 \\u2013 \\u2265 3'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"caf\xe9 \\u2013 \\u2265 3\n"
