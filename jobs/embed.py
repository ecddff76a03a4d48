"""Embed many images with a stage-1 checkpoint: features for retrieval, and scores of given pairs.

    python jobs/embed.py --checkpoint RUN --input photos --out features
    python jobs/embed.py --checkpoint RUN --input photos --out features --texts queries.txt
    python jobs/embed.py --checkpoint RUN --input photos --out features --pairs pairs.jsonl

A run that was ended goes on with the same command; results are kept in OUT.parts as they are made,
and an image that is added later is embedded alone. The last line of the output is JSON. Exit code:
0, or 3 where not one image could be read. jobs/search.py searches the output. See docs/using.md.
"""

import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

import tyro

from cluster.storage.base import absolute_url
from cluster.storage.open import open_storage
from jobs.bulk.features import (
    EmbedArgs,
    Embedding,
    gather,
    plan_of,
    read_lines,
    read_pairs,
    write_features,
)
from jobs.bulk.run import run_pieces
from jobs.bulk.tables import store_of
from jobs.cli import run
from jobs.predict import load_embedder
from jobs.prediction.identity import identify
from pipeline.sources.pictures import cut_pieces, open_pictures

NOTHING_READ = 3
"""Exit code of a run in which no image could be read (1 is a crash, 2 a user's mistake)."""


def embed(args: EmbedArgs) -> int:
    """Write the features; returns the exit code."""
    lines = read_lines(args.texts)
    pairs: dict[str, list[tuple[int, str]]] = {}
    for number, (image, text) in enumerate(read_pairs(args.pairs)):
        pairs.setdefault(image, []).append((number, text))
    source = open_pictures(args.input, args.images)
    store, pieces = store_of(args.out), cut_pieces(source, args.work.chunk)
    plan = plan_of(args, identify(Path(args.checkpoint)).digest)
    run_pieces(args.work, store, plan, source, pieces, make=partial(Embedding, args, pairs))
    told, arrays = gather(store, pieces)
    features = None
    if lines:
        features = load_embedder(args.checkpoint, args.work.device).embed_texts(lines).numpy()
    write_features(args, told, arrays, (lines, features))
    about = {"checkpoint": absolute_url(args.checkpoint), "input": absolute_url(args.input),
             "images": args.images and absolute_url(args.images)}  # fmt: skip
    open_storage(args.out).replace("embed.json", (json.dumps(about, indent=1) + "\n").encode())
    reasons = Counter(one["failed"] for one in told if one["failed"])
    good = len(told) - reasons.total()
    print(f"{good} of {len(told)} images in {args.out}")
    for reason, number in reasons.most_common():
        print(f"  failed: {reason:<32}{number:>8,}")
    counts = {"images": good, "failed": dict(reasons), "texts": len(lines), "out": args.out}
    print(json.dumps(counts, ensure_ascii=False), flush=True)
    return 0 if good else NOTHING_READ


def main() -> int:
    return embed(tyro.cli(EmbedArgs, description=__doc__))


if __name__ == "__main__":
    run(main)
