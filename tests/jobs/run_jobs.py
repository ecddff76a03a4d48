"""Runs several jobs' command lines one after the other, each in a process of its own.

    python tests/jobs/run_jobs.py '[["finetune_caption", "--recipe", "caption-tinyworld-t5"], ...]'

The libraries are imported once and every job is forked off, which takes a second instead of ten.
Prints a line of JSON: for each job its exit code and what it said and complained.
"""

import json
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
JOBS = ("stage1", "stage2", "finetune_caption", "finetune_retrieval", "finetune_vqa", "instruct")


def run_jobs(commands: list[list[str]]) -> list[dict]:
    """From a test: start this file and read its answer."""
    import subprocess

    done = subprocess.run(
        [sys.executable, __file__, json.dumps(commands)],
        cwd=ROOT,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    sys.path[0] = str(ROOT)
    import deepspeed  # noqa: F401  the slowest import

    from jobs import cli

    mains = {name: import_module(f"jobs.{name}").main for name in JOBS}
    results = []
    for job, *arguments in json.loads(sys.argv[1]):
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if not child:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                cli.run(lambda job=job, arguments=arguments: mains[job](arguments))
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            out.seek(0)
            err.seek(0)
            results.append({"code": code, "out": out.read(), "err": err.read()})
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
