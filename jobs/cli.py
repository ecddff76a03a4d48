"""How every job begins and ends: a check of this Python, and an exit code.

Every script in ``jobs/`` imports this module first: where Python is too old or packages are
missing, it ends with one line that says what to type. The module's top must therefore run on any
Python 3 without a package.
"""

from __future__ import annotations

import io
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)
NEEDED = ("torch", "transformers", "timm", "pyarrow", "tyro")
"""Packages of requirements.txt that stand for all of them."""


def run(main: Callable[[], int | None]) -> None:
    """Run a job's ``main`` and exit with the code it returns.

    A user's mistake (``ValueError``, ``FileNotFoundError``), a store that does not answer, data
    that were changed after they were written, or a training run that diverged end with one line on
    stderr and exit code 2; any other exception is a fault of ours and keeps its traceback. Before
    its ranks have met, a training job prints the line once a node. A character that the terminal's
    encoding lacks is printed as its escape.
    """
    from cluster.ranks.dist import have_met
    from cluster.storage.base import Unreachable
    from cluster.storage.cache import Changed

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main()
    except (ValueError, FileNotFoundError, FloatingPointError, Unreachable, Changed) as mistake:
        rank = os.environ.get("RANK", "0")
        if os.environ.get("LOCAL_RANK", rank) == "0" or have_met():
            print(f"error: {mistake}", file=sys.stderr, flush=True)
        code = 2
    sys.exit(code or 0)


def mistake(version: tuple, missing: list, root: Path = ROOT) -> str:
    """The line for the user; empty where nothing is wrong.

    Args:
        version: the version of the running Python.
        missing: names of packages that are not installed.
        root: folder of the clone.
    """
    if version >= OLDEST and not missing:
        return ""
    found = f"Python {version[0]}.{version[1]}"
    wrong = "lacks " + ", ".join(missing) if version >= OLDEST else "is older than Python 3.11"
    venv = root / ".venv"
    if not (venv / "bin" / "activate").is_file() or Path(sys.prefix).resolve() == venv.resolve():
        remedy = f"run `make setup`, then `source .venv/bin/activate`, in {root}"
    else:
        remedy = f"run `source {venv}/bin/activate` first"
    return f"error: {found} ({sys.executable}) {wrong}; {remedy}"


def check() -> None:
    """End the process with one line and exit code 2 where this Python cannot run the jobs."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    line = mistake(tuple(sys.version_info[:3]), missing)
    if line:
        print(line, file=sys.stderr)
        sys.exit(2)


check()
