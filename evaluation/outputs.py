"""The files of one evaluation, on disk or on S3: each is written whole or not at all."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.storage.open import open_storage


@dataclass(frozen=True)
class Outputs:
    """The folder of results and predictions, or its ``s3://`` URL; None: nothing is written."""

    url: str | None

    def write(self, name: str, content: Any, indent: int | None = None) -> None:
        """Write a JSON file; an older one is replaced once the new one is whole."""
        self.write_text(name, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, as ``write`` does."""
        if self.url is not None:
            open_storage(self.url).replace(name, text.encode("utf-8"))

    def read_text(self, name: str) -> str:
        """The content of a text file; empty where there is none."""
        if self.url is None or not open_storage(self.url).exists(name):
            return ""
        return open_storage(self.url).read(name).decode("utf-8")


def read_output(path: Path) -> Any:
    """The content of a file that ``Outputs`` wrote.

    Infinite numbers stay what they are: the score of a pair that is no candidate is ``-inf``.
    """
    return json.loads(path.read_text(encoding="utf-8"))
