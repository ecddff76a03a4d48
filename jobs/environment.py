"""A check that this Python can run the jobs, made before anything else is imported.

Every script in ``jobs/`` imports this module first, for its effect: where Python is too old or
packages are missing, the script ends with one line that says what to type. The module itself must
run on any Python 3, so it uses nothing newer.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)
NEEDED = ("torch", "transformers", "timm", "pyarrow", "tyro")
"""Packages of requirements.txt that stand for all of them."""


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
