"""Score a checkpoint: captioning and zero-shot VQA (stage 2), retrieval (stage 1).

    python jobs/evaluate.py --checkpoint RUN --data DIR --tasks caption vqa --split test --out OUT
    python jobs/evaluate.py --checkpoint RUN --data DIR --tasks vqa --table 2 --row vit-g-flant5-xl
    python jobs/evaluate.py --checkpoint RUN --data DIR --tasks vqa --answers rank --candidates FILE

    python jobs/evaluate.py --checkpoint RUN --data DIR --tasks okvqa textvqa nocaps --out OUT

The tasks caption, vqa, gqa and retrieval read common formats: DIR holds the folders images/SPLIT
and annotations. Files in annotations are captions_SPLIT.json (COCO) or dataset_karpathy.json,
vqa_SPLIT_questions.json and vqa_SPLIT_annotations.json (VQAv2), and gqa_SPLIT_questions.json. Every
other task is a benchmark, whose files lie in DIR/NAME as its authors publish them. OUT receives
results.json and the predictions in the formats that the official servers take. A test set without
references is predicted and not scored. All scores are fractions between 0 and 1; CIDEr 1.0 is
printed as 100 in papers. See docs/evaluation.md.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

import tyro

from cluster.storage.base import absolute_url, as_url
from evaluation import tables
from evaluation.compare import compare_runs, render_comparison
from evaluation.outputs import Outputs
from evaluation.results import beside_paper, print_results
from jobs.cli import run
from jobs.evaluation.arguments import EvaluateArgs
from jobs.evaluation.predictions import score_predictions
from jobs.evaluation.run import evaluate
from jobs.evaluation.watch import Watch


def main() -> int:
    """Evaluate, watch, compare or score as the options say; returns the exit code."""
    args = tyro.cli(EvaluateArgs, description=__doc__)
    if args.watching.watch is not None:
        Watch(args).forever()
        return 0
    if args.work.compare is not None:
        first, second = (absolute_url(as_url(folder)) for folder in args.work.compare)
        compared = compare_runs(first, second, args.further.seed)
        Outputs(as_url(args.out) if args.out else None).write(
            "comparison.json", compared.as_json(), indent=1
        )
        print(render_comparison(compared))
        return 0
    results = score_predictions(args) if args.work.predictions else evaluate(args)
    print_results(results)
    published = beside_paper(results)
    if published is not None:
        print(tables.render_text(*published))
    return 0


if __name__ == "__main__":
    run(main)
