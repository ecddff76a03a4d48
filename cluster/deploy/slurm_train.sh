#!/bin/bash
#SBATCH --job-name=isthmus
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=isthmus-%j.log
#
# Training under Slurm: one DeepSpeed launcher a node, no ssh.
#
#   sbatch cluster/deploy/slurm_train.sh jobs/stage1.py --recipe vit-g --data /shared/capfilt --out /shared/stage1
#
# Run it from the clone, on a file system that all nodes see, with its .venv (or deepspeed on PATH).
# SIGTERM, on preemption and 120 s before the time limit, reaches all processes of the step. The
# task's first process ignores it, since Slurm kills a task whose first process has ended; the ranks
# save and end, for which DeepSpeed's launcher gives them 30 s. The job is then put back into the
# queue and resumes. So it is after a lost node; a mistake (exit code 2) ends it.

set -u
trap : TERM # what follows the step must run, also where this script is signalled too
if [[ $# -eq 0 ]]; then
  echo "error: no job given; sbatch $0 jobs/stage1.py --recipe NAME --data URL --out URL" >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}" || exit 2
export PATH="$PWD/.venv/bin:$PATH"
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# shellcheck disable=SC2016  # the tasks expand these, each on its node
task='
trap "" TERM  # inherited by deepspeed; its launcher and the ranks set handlers of their own
hostfile=$(mktemp) || exit 1
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/$/ slots=${SLURM_GPUS_ON_NODE:-1}/" > "$hostfile"
exec deepspeed --hostfile "$hostfile" --no_ssh --node_rank "$SLURM_NODEID" \
  --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" "$@"
'
srun --kill-on-bad-exit=1 bash -c "$task" task "$@"
code=$?

most=${ISTHMUS_REQUEUES:-100}
if [[ $code -ne 0 && $code -ne 2 && ${SLURM_RESTART_COUNT:-0} -lt $most ]]; then
  echo "ended with code $code: back into the queue; the next start resumes"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
