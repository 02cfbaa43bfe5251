#!/usr/bin/env bash
# Prepare data under Slurm, on the cores of one node: sbatch slurm/prepare.sh data.inputs=[corpus/] data.name=mine
# What is set here can be set otherwise on sbatch's command line; the words after the script are those of
# `pretrain prepare`. It goes on from the finished pieces after a time limit, preemption or a lost node.
#SBATCH --job-name=prepare
#SBATCH --output=prepare-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --signal=B:USR1@60
set -euo pipefail

python=python3
for environment in "${PRETRAIN_VENV:-}" "${VIRTUAL_ENV:-}" "$PWD/.venv"; do
    if [[ -n $environment && -x $environment/bin/python ]]; then
        python=$environment/bin/python
        break
    fi
done

out_of_time=0
trap 'out_of_time=1; kill -TERM "$work"' USR1
echo "job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-}, restart ${SLURM_RESTART_COUNT:-0}"
"$python" -m pretrain prepare "prepare.num_workers=${SLURM_CPUS_PER_TASK:-1}" "$@" &
work=$!
code=0
wait "$work" || code=$?
if ((out_of_time)); then
    wait "$work" || true # the first wait ended with the signal
    echo "the time limit is near: the job is queued again, and goes on from the finished pieces"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
