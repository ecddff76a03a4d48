"""Caption many images, or ask many questions of them, with a stage-2 checkpoint.

    python jobs/caption.py --checkpoint RUN --input photos --out captions.jsonl
    python jobs/caption.py --checkpoint RUN --input photos --out captions.csv --sample --count 5
    python jobs/caption.py --checkpoint RUN --input photos --out answers.parquet --questions FILE

A run that was ended goes on with the same command; results are kept in OUT.parts as they are made,
and an image that is added later is captioned alone. An image that cannot be read has a row with the
reason. The last line of the output is JSON: numbers of images, rows and failures. Exit code: 0, or
3 where not one image could be read. See docs/using.md.
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

from jobs.bulk.captions import CaptionArgs, Captioning, columns, plan_of, read_questions
from jobs.bulk.run import run_pieces
from jobs.bulk.tables import store_of, write_rows, write_texts
from jobs.cli import run
from jobs.prediction.identity import identify
from pipeline.sources.lists import ListSource
from pipeline.sources.pictures import cut_pieces, open_pictures

NOTHING_READ = 3
"""Exit code of a run in which no image could be read (1 is a crash, 2 a user's mistake)."""


def caption(args: CaptionArgs) -> int:
    """Write the captions or answers; returns the exit code."""
    questions = read_questions(args.questions)
    source = open_pictures(args.input, args.images)
    if args.beside and not isinstance(source, ListSource):
        raise ValueError(f"--beside: {args.input} holds tars, which have no place beside an image")
    store, pieces = store_of(args.out), cut_pieces(source, args.work.chunk)
    plan = plan_of(args, identify(Path(args.checkpoint)).digest, questions)
    make = partial(Captioning, args, questions)
    run_pieces(args.work, store, plan, source, pieces, make=make)
    rows: list[dict] = [row for piece in pieces for row in store.read(piece.name)[1]]  # type: ignore[misc]
    write_rows(args.out, columns(args), rows, args.kind)
    if args.beside and isinstance(source, ListSource):
        write_texts(source.storage, rows, args.kind)
    return tell(args.out, rows)


def tell(out: str, rows: list[dict]) -> int:
    """Print the counts, the last line for programs; returns the exit code."""
    images = {row["image"] for row in rows}
    reasons = Counter(row["failed"] for row in rows if row["failed"])
    good = len(rows) - reasons.total()
    print(f"{good} texts about {len(images)} images in {out}")
    for reason, number in reasons.most_common():
        print(f"  failed: {reason:<32}{number:>8,}")
    counts = {"images": len(images), "texts": good, "failed": dict(reasons), "out": out}
    print(json.dumps(counts, ensure_ascii=False), flush=True)
    return 0 if good or not rows else NOTHING_READ


def main() -> int:
    return caption(tyro.cli(CaptionArgs, description=__doc__))


if __name__ == "__main__":
    run(main)
