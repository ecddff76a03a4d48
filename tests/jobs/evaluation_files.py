"""Files of an evaluation, compared."""

from pathlib import Path


def answers_of(out: Path) -> dict[str, bytes]:
    """The content of every file of an evaluation that must not depend on how it was run."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "results.json"
    }
