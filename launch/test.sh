#!/usr/bin/env bash
# Environment and checks.
#   bash launch/test.sh            static checks and tests: about 15 minutes on two cores
#   bash launch/test.sh --quick    static checks and unit tests: about 2 minutes
#   bash launch/test.sh --all      static checks and all tests, Slurm included
#   bash launch/test.sh -k loader  other arguments go to pytest, and nothing else runs
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
ensure_environment dev
cd -- "$root"
PATH="$venv/bin:$PATH"
# Tests start many small processes; threads of each would only fight for the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

part="${1:---short}"
case "$part" in
--short | --quick | --all) ;;
*) exec python -m pytest "$@" ;;
esac

status=0
check() {
    echo "== $*"
    "$@" || status=1
}
# The type checker takes long on its first run: the other checks share the time.
types="$(mktemp)"
trap 'rm -f -- "$types"' EXIT
mypy >"$types" 2>&1 &
mypy_process=$!
check ruff check
check ruff format --check
check lint-imports
check shellcheck slurm/*.sh launch/*.sh .ci/run
echo "== mypy"
wait "$mypy_process" || status=1
cat -- "$types"

# As many workers as tests/conftest.py says; each takes whole files, long ones first.
workers=(-n auto --dist loadfile --no-loadscope-reorder)
case "$part" in
--quick) check python -m pytest "${workers[@]}" -q --quick tests/unit ;;
--short) check python -m pytest "${workers[@]}" --short ;;
--all)
    # Jobs on a Slurm cluster, a throw-away one where PRETRAIN_SLURM_SANDBOX names the script that starts it.
    check python -m pytest tests/slurm
    check python -m pytest "${workers[@]}" --ignore tests/slurm
    ;;
esac
exit "$status"
