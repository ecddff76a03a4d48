"""How many captions are right, where the truth is known: CapFilt judged on TinyWorld.

Nothing in training or in CapFilt reads the truth; it is written aside and opened only here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.parquet as pq

from pipeline.shards.manifest import committed
from pipeline.tinyworld.scene import Scene
from pipeline.tinyworld.text import is_true


@dataclass(frozen=True)
class Audit:
    """Shares of right captions, each between 0 and 1."""

    right_before: float  # of the web captions as they came, one a sample
    right_after: float  # of the captions that CapFilt kept, about two a sample
    right_synthetic: float  # of all synthetic captions, before ranking
    samples: int


def _share(right: list[bool]) -> float:
    return sum(right) / len(right) if right else 0.0


def audit_capfilt(output: str, truth: Mapping[str, Scene]) -> dict[str, Any]:
    """Judge every caption in a CapFilt output by the scenes it is about.

    Args:
        output: folder that ``jobs/capfilt.py`` wrote.
        truth: scene by sample key, for every sample of the output.
    """
    before: list[bool] = []
    kept: list[bool] = []
    synthetic: list[bool] = []
    columns = ["key", "status", "web_caption", "captions", "origins", "kept"]
    for commit in committed(output):
        for row in pq.read_table(commit.parquet_path, columns=columns).to_pylist():
            scene = truth[row["key"]]
            before.append(is_true(row["web_caption"] or "", scene))
            if row["status"] != "ok":
                continue
            right = [is_true(text, scene) for text in row["captions"]]
            kept += [right[i] for i in row["kept"]]
            synthetic += [
                r for r, origin in zip(right, row["origins"], strict=True) if origin == "synthetic"
            ]
    return asdict(Audit(_share(before), _share(kept), _share(synthetic), len(before)))
