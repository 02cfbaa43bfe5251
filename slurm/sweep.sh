#!/usr/bin/env bash
# The members of a sweep as a job array, started by hand: written by `pretrain submit -m ... --no-submit`, then
#   sbatch --array=0-3 slurm/sweep.sh sweeps/NAME
#   sbatch --array=2 --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 slurm/sweep.sh sweeps/NAME
# sbatch's command line can override the settings here. The environment is $PRETRAIN_VENV, the active one, or
# .venv in the folder of submission.
#SBATCH --job-name=pretrain-sweep
#SBATCH --output=pretrain-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --requeue
# Three minutes before the limit this script alone gets a signal, and asks the ranks to save: longer than a save takes.
#SBATCH --signal=B:USR1@180
# From here on Slurm's signals are kept until Python, which takes seconds to start, reads them.
keep() { kept+="$1 "; [[ -z ${PRETRAIN_SIGNALS_PIPE:-} ]] || echo "$1" >&"$PRETRAIN_SIGNALS_PIPE"; }
trap 'keep TERM' TERM; trap 'keep INT' INT; trap 'keep USR1' USR1; trap 'keep HUP' HUP
exec {PRETRAIN_SIGNALS_PIPE}<> <(:)
export PRETRAIN_SIGNALS_PIPE
[[ -z ${kept:-} ]] || echo "$kept" >&"$PRETRAIN_SIGNALS_PIPE"
set -euo pipefail

python=python3
for environment in "${PRETRAIN_VENV:-}" "${VIRTUAL_ENV:-}" "$PWD/.venv"; do
    if [[ -n $environment && -x $environment/bin/python ]]; then
        python=$environment/bin/python
        break
    fi
done
(trap '' TERM INT USR1 HUP; exec "$python" -u -m launch.slurm.array_task "$@") &
supervisor=$!
exec {never}<> <(:)
while kill -0 "$supervisor" 2>/dev/null; do read -r -t 1 -u "$never" || true; done # traps run in between
wait "$supervisor"
