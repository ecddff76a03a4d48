#!/bin/bash
# Writes ~/.deepspeed_env: the variables that `deepspeed --hostfile` sets on all machines.
#
#   cluster/deploy/deepspeed_env.sh        # again after each change; then: deepspeed --hostfile ...
#
# DeepSpeed passes on nothing else but NCCL_*, PYTHON*, UCX_*, MV2_* and MLFLOW_*. Only you can read
# the file, but pdsh shows its lines in the machines' lists of processes: for S3, give machines a
# role of their own instead of keys.
set -eu
umask 077
names='AWS_|CUBLAS_|CUDA_|DS_|GLOO_|HF_|HTTPS?_PROXY|ISTHMUS_|NO_PROXY|OMP_|TMPDIR|TORCH_|TRITON_|WANDB_|XDG_CACHE_HOME'
env | grep -E "^($names)" | grep -v -E '^(CUDA_VISIBLE_DEVICES|HF_TOKEN_PATH)=' | sort > ~/.deepspeed_env
echo "~/.deepspeed_env: $(cut -d= -f1 ~/.deepspeed_env | tr '\n' ' ')"
