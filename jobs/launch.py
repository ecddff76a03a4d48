"""Train on the machines of a Ray cluster: DeepSpeed's launcher on each, restarted when one is lost.

    ray job submit --working-dir . -- python jobs/launch.py --nodes 2 --gpus 8 -- \\
        jobs/stage1.py --recipe vit-g --data s3://BUCKET/capfilt --out s3://BUCKET/stage1

What follows the second ``--`` is the job as ``deepspeed`` would be given it; its paths are as seen
from every machine. ``ray job stop`` lets the ranks save and end, and the same command resumes.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

from typing import Annotated

import tyro

from cluster.ray import launch, session
from jobs import cli

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Run the job after ``--`` on all machines.

    Raises:
        ValueError: no job given, none of that name, or no Ray cluster that answers.
    """
    given = sys.argv[1:] if arguments is None else arguments
    config, address, command = parse(given)
    with session.connected(session.RayConfig(address=address), ROOT):
        return launch.run(config, command)


def parse(arguments: list[str]) -> tuple[launch.GroupConfig, str | None, list[str]]:
    """The group, Ray's address and the job's command of a command line.

    Raises:
        ValueError: no job after ``--``, or none of that name.
    """
    at = arguments.index("--") if "--" in arguments else len(arguments)
    config, address = tyro.cli(_options, args=arguments[:at], prog="jobs/launch.py")
    command = arguments[at + 1 :]
    if not command:
        raise ValueError("no job: add it behind --, such as -- jobs/stage1.py --recipe NAME ...")
    if not (ROOT / command[0]).is_file():
        raise ValueError(f"job {command[0]!r}: no such file in {ROOT}; give jobs/stage1.py")
    return config, address, command


def _options(
    config: Annotated[launch.GroupConfig, tyro.conf.arg(name="")],
    address: str | None = None,
) -> tuple[launch.GroupConfig, str | None]:
    """Train on the machines of a Ray cluster.

    Args:
        config: the machines.
        address: address of the Ray cluster; None takes that of RAY_ADDRESS.
    """
    return config, address


if __name__ == "__main__":
    cli.run(main)
