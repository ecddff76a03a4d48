"""Search an embedded set of images by texts or images.

    python jobs/search.py --features features --query "a red bird" "two dogs" --page found.html
    python jobs/search.py --features features --image photo.jpg
    python jobs/search.py --features features --query "a red bird" --rerank 128

The results are printed, a line each: rank, score, name. See docs/using.md.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

import tyro

from evaluation.report.page import write_report
from jobs.bulk.search import SearchArgs, Searcher, report
from jobs.cli import run


def main() -> int:
    args = tyro.cli(SearchArgs, description=__doc__)
    searcher = Searcher(args)
    found = [searcher.by_text(text) for text in args.query]
    found += [searcher.by_image(image) for image in args.image]
    for one in found:
        print(one.query)
        for rank, (name, score) in enumerate(zip(one.images, one.scores, strict=True), start=1):
            print(f"{rank:5d}  {score:7.3f}  {name}")
    if args.page is not None:
        write_report(args.page, report(args, searcher, found))
        print(f"page: {args.page}")
    return 0


if __name__ == "__main__":
    run(main)
