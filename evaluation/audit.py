"""The share of right captions before and after CapFilt, on TinyWorld, where the truth is known.

Neither CapFilt nor training reads the truth: it is in a file of its own, which only this audit
opens.
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
    """Shares of right captions, each between 0 and 1.

    Attributes:
        right_before: share among the original web captions, one a sample.
        right_after: share among the captions that CapFilt kept, about two a sample.
        right_synthetic: share among all synthetic captions, before ranking.
        samples: number of samples that were judged.
    """

    right_before: float
    right_after: float
    right_synthetic: float
    samples: int


def _share(right: list[bool]) -> float:
    return sum(right) / len(right) if right else 0.0


def audit_capfilt(output: str, truth: Mapping[str, Scene]) -> dict[str, Any]:
    """Judge every caption of a CapFilt output by the scene that its image shows.

    Args:
        output: folder that ``jobs/capfilt.py`` wrote.
        truth: scene of every sample of the output, by the sample's key.
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
