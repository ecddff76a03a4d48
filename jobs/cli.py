"""How every job ends: its own exit code, or one line that says what to change."""

import io
import sys
from collections.abc import Callable

from cluster.storage.base import Unreachable
from cluster.storage.cache import Changed


def run(main: Callable[[], int | None]) -> None:
    """Run a job's ``main`` and exit.

    A user's mistake (``ValueError``, ``FileNotFoundError``), a store that does not answer, or data
    that were changed after they were written end with one line on stderr and exit code 2; anything
    else is ours and keeps its traceback. A character that the terminal's encoding lacks is printed
    as its escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main()
    except (ValueError, FileNotFoundError, Unreachable, Changed) as mistake:
        print(f"error: {mistake}", file=sys.stderr, flush=True)
        code = 2
    sys.exit(code or 0)
