#!/usr/bin/env bash
# Prepare data under Slurm, on the cores of one node: sbatch slurm/prepare.sh 'data.inputs=[corpus/]' data.name=mine
# Options of sbatch on its command line override those set here; the arguments after the script are those of
# `pretrain prepare`. After a time limit, preemption or a lost node, the job continues from the finished tasks.
#SBATCH --job-name=prepare
#SBATCH --output=prepare-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --signal=B:USR1@60
# First of all: the signal may come while Python is being looked for.
out_of_time=0
trap 'out_of_time=1; [[ -z ${work:-} ]] || kill -TERM "$work" || true' USR1
set -euo pipefail

python=python3
for environment in "${PRETRAIN_VENV:-}" "${VIRTUAL_ENV:-}" "$PWD/.venv"; do
    if [[ -n $environment && -x $environment/bin/python ]]; then
        python=$environment/bin/python
        break
    fi
done

echo "job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-}, restart ${SLURM_RESTART_COUNT:-0}"
"$python" -m pretrain prepare "prepare.num_workers=${SLURM_CPUS_PER_TASK:-1}" "$@" &
work=$!
((!out_of_time)) || kill -TERM "$work" || true
code=0
exec {never}<> <(:)
# Not `wait`: a signal that comes just before it blocks has its trap run only afterwards.
while kill -0 "$work" 2>/dev/null; do read -r -t 1 -u "$never" || true; done
wait "$work" || code=$?
if ((out_of_time)); then
    trap '' TERM # by which Slurm ends what it queues again
    until scontrol requeue "$SLURM_JOB_ID"; do
        echo "Slurm did not queue the job again: it is asked again in 10 s, until the job's time is over"
        sleep 10
    done
    echo "the time limit is near: the job is queued again, and continues from the finished pieces"
fi
exit "$code"
