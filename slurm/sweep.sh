#!/usr/bin/env bash
# The members of a sweep as a job array, started by hand: written by `pretrain submit -m ... --no-submit`, then
#   sbatch --array=0-3 slurm/sweep.sh sweeps/NAME
#   sbatch --array=2 --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 slurm/sweep.sh sweeps/NAME
# What is set here can be set otherwise on sbatch's command line. The environment is $PRETRAIN_VENV, the active one, or
# .venv in the folder of submission.
#SBATCH --job-name=pretrain-sweep
#SBATCH --output=pretrain-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --requeue
# Three minutes before the limit this script alone is told, and tells the ranks: longer than a save takes.
#SBATCH --signal=B:USR1@180
set -euo pipefail

python=python3
for environment in "${PRETRAIN_VENV:-}" "${VIRTUAL_ENV:-}" "$PWD/.venv"; do
    if [[ -n $environment && -x $environment/bin/python ]]; then
        python=$environment/bin/python
        break
    fi
done
# In this shell's place: Slurm's signals are for it.
exec "$python" -u -m launch.member "$@"
