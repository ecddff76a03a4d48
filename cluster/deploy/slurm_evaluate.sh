#!/bin/bash
#SBATCH --job-name=isthmus-evaluate
#SBATCH --array=1-4
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=isthmus-evaluate-%A-%a.log
#
# Scheduled evaluation under Slurm: each task of the array is a watcher with one GPU. They share the
# checkpoints of the run by claims, and any of them may be preempted: another goes on from its answers.
#
#   sbatch cluster/deploy/slurm_evaluate.sh --watch /shared/RUN --suite nightly --data /shared/benchmarks --once
#
# Run it from the clone, on a file system that all nodes see, with its .venv (or python on PATH). With
# --once the job ends when every checkpoint is evaluated; start it again by cron (scrontab), or give
# --every 10m and a time limit.

set -u
if [[ $# -eq 0 ]]; then
  echo "error: no options given; sbatch $0 --watch RUN --suite NAME --data DIR --once" >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}" || exit 2
export PATH="$PWD/.venv/bin:$PATH"
exec srun --ntasks=1 python jobs/evaluate.py "$@"
