"""The files of one evaluation: each is written whole or not at all, predictions as they come."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Keep = Callable[[list[dict[str, Any]]], None]
"""A writer of predictions, called with every batch of them as soon as it is there."""


def keep_nothing(batch: list[dict[str, Any]]) -> None:
    """Write nothing."""


@dataclass(frozen=True)
class Outputs:
    """The folder of results and predictions; None: nothing is written."""

    folder: Path | None

    def write(self, name: str, content: Any, indent: int | None = None) -> None:
        """Write a JSON file; an older one is replaced once the new one is whole."""
        self.write_text(name, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, as ``write`` does."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f"{name}.part"
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, self.folder / name)

    def predictions(
        self, name: str, predict: Callable[[Keep], list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """Write all predictions to ``name``, and each batch as it comes to a file beside it.

        Args:
            predict: gives each batch of predictions to its argument, and returns them all in order.
        """
        with self._keeping(name) as keep:
            predictions = predict(keep)
            self.write(name, predictions)
        return predictions

    @contextmanager
    def _keeping(self, name: str) -> Iterator[Keep]:
        """A writer of predictions to ``NAME.unfinished.jsonl``, a line each.

        The file is removed at the end of the block. If the block fails, the file stays, and a line
        on stderr says so.
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


def read_output(path: Path) -> Any:
    """The content of a file that ``Outputs`` wrote.

    Infinite numbers stay what they are: the score of a pair that is no candidate is ``-inf``.
    """
    return json.loads(path.read_text(encoding="utf-8"))
