"""The files of one evaluation: each written whole or not at all, and predictions as they come."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.caption import Keep, keep_nothing


@dataclass(frozen=True)
class Outputs:
    """The folder that results and predictions go to; None: nothing is written."""

    folder: Path | None

    def write(self, name: str, content: Any, indent: int | None = None) -> None:
        """Write a JSON file; an older one is replaced when the new one is whole."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f"{name}.part"
        text = json.dumps(content, indent=indent, ensure_ascii=False)
        aside.write_text(text + "\n", encoding="utf-8")
        os.replace(aside, self.folder / name)

    @contextmanager
    def keeping(self, name: str) -> Iterator[Keep]:
        """Predictions as they come, a line each, in ``NAME.unfinished.jsonl``.

        The file goes when the block ends well, by which the caller has written all predictions to
        ``name``. Where it fails the file stays, and a line on stderr says so.
        """
        if self.folder is None:
            yield keep_nothing
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name.removesuffix('.json')}.unfinished.jsonl"
        with open(path, "w", encoding="utf-8") as lines:

            def keep(batch: list[dict[str, Any]]) -> None:
                lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch)
                lines.flush()

            try:
                yield keep
            except BaseException:
                print(f"note: what was predicted until here is in {path}", file=sys.stderr)
                raise
        path.unlink()
