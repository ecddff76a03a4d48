"""Search among many vectors: an index beside the exact search, with its recall.

    python jobs/benchmark.py search
    python jobs/benchmark.py search --vectors 100000

Vectors are drawn around centres (100 a centre), as features of real images lie; queries around the
same centres. The recall is the share of the exact best ten that the index finds.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tyro

from jobs.bulk.nearest import Vectors, build_index, by_index, exact


@dataclass(frozen=True)
class SearchBench:
    """Options of the search benchmark.

    Attributes:
        vectors: number of images, of one vector each.
        width: width of a vector.
        queries: number of queries, one after the other.
        count: number of results of a query.
        spread: standard deviation around a centre, of one at a centre.
        threads: CPU threads that build the index; 0: all.
    """

    vectors: int = 1_000_000
    width: int = 256
    queries: int = 300
    count: int = 10
    spread: float = 0.7
    threads: int = 0


def measure(args: SearchBench) -> dict[str, Any]:
    """Seconds of building, milliseconds of a query, and recall."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(1, args.vectors // 100), args.width)).astype(np.float32)
    drawn = _around(rng, centres, args.vectors, args.spread)
    asked = _around(rng, centres, args.queries, args.spread)
    vectors = Vectors(drawn[:, None])
    begun = time.perf_counter()
    index = build_index(drawn, args.threads)
    built = time.perf_counter() - begun
    near, by = _timed(lambda query: by_index(vectors, index, query, args.count)[0], asked)
    true, through = _timed(lambda query: exact(vectors, query, args.count)[0], asked[:20])
    pairs = zip(near, true, strict=False)
    recall = np.mean([len(set(a) & set(b)) / args.count for a, b in pairs])
    return {"build_s": round(built, 1), "index_ms": by, "exact_ms": through,
            "recall": round(float(recall), 4), **asdict(args)}  # fmt: skip


def _around(rng: np.random.Generator, centres: np.ndarray, count: int, spread: float) -> np.ndarray:
    made = centres[rng.integers(len(centres), size=count)]
    made += np.float32(spread) * rng.standard_normal(made.shape, dtype=np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


def _timed(
    search: Callable[[np.ndarray], np.ndarray], queries: np.ndarray
) -> tuple[list[np.ndarray], dict[str, float]]:
    found, seconds = [], []
    for query in queries:
        begun = time.perf_counter()
        found.append(search(query))
        seconds.append(time.perf_counter() - begun)
    p50, p95 = np.percentile(seconds, [50, 95]) * 1e3
    return found, {"p50": round(p50, 2), "p95": round(p95, 2)}


def main(arguments: Sequence[str]) -> int:
    made = measure(tyro.cli(SearchBench, args=arguments, description=__doc__))
    print(f"{made['vectors']:,} vectors of {made['width']}; index built in {made['build_s']} s")
    for name in ("index", "exact"):
        print(f"  {name:6} p50 {made[f'{name}_ms']['p50']:8.2f} ms, "
              f"p95 {made[f'{name}_ms']['p95']:8.2f} ms")  # fmt: skip
    print(f"  recall of the index at {made['count']}: {made['recall']:.3f}")
    print(json.dumps(made))
    return 0
