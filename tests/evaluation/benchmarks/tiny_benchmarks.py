"""Files of the benchmarks as TinyWorld writes them, for a test to change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the content of a JSON file, or the rows of a JSON-lines file.

    A change that returns something replaces the content.
    """
    lines = path.suffix == ".jsonl"
    text = path.read_text()
    content = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    changed = change(content)
    content = content if changed is None else changed
    rows = content if lines else [content]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
