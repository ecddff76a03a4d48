"""Retrieval finetune: stage 1 goes on with its image encoder (tables 5, 6 and 9).

    deepspeed jobs/finetune_retrieval.py --recipe retrieval-vit-g --data runs/coco \\
        --init runs/stage1 --out runs/retrieval
    python jobs/finetune_retrieval.py --recipe retrieval-vit-g --dry-run --world 16

--data are shards of human captions (``jobs/capfilt.py`` passes them through). Samples that show the
same image are no negatives of each other. --init takes a stage-1 run. The same command again
resumes.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.environment  # noqa: F401  a line, not a traceback, where packages are missing

from jobs import cli, stage1
from jobs.training import command


def main(arguments: list[str] | None = None) -> int:
    """Check everything, then train: all of it is stage 1's but where it starts from."""
    return command.main("finetune_retrieval", arguments, stage1.make_module, stage1.make_task)


if __name__ == "__main__":
    cli.run(main)
