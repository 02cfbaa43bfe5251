#!/usr/bin/env bash
# Environment and checks: `bash launch/test.sh` runs all of them, `bash launch/test.sh -k loader` gives its arguments to pytest and runs only that.
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
ensure_environment dev
cd -- "$root"
PATH="$venv/bin:$PATH"
# Tests bring up many small processes; threads of each would only fight for the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

if (($#)); then
    exec python -m pytest "$@"
fi

status=0
check() {
    echo "== $*"
    "$@" || status=1
}
check ruff check
check ruff format --check
check mypy
check lint-imports
check shellcheck slurm/*.sh
# Tests of many processes one at a time, the others two files at a time; a failed check shows in the exit code.
check python -m pytest tests/ranks
check python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/ranks --ignore tests/slurm
# Jobs on a Slurm cluster, a throw-away one where PRETRAIN_SLURM_SANDBOX names the script that starts it.
check python -m pytest tests/slurm
exit "$status"
