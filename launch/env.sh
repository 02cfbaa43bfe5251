#!/usr/bin/env bash
# Makes the Python environment, or finds it made: `bash launch/env.sh` or `bash launch/env.sh dev`.
# Lives in .venv, or in the folder that $PRETRAIN_VENV names. A second run only compares a stamp.
# Sourced, it defines `venv`, `root` and `ensure_environment`, and does nothing.

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${PRETRAIN_VENV:-$root/.venv}"
[[ $venv == /* ]] || venv="$PWD/$venv"

oldest_python=11   # 3.11; tomllib, and what pyproject.toml asks for
newest_python=13   # 3.13; megatron-core 0.16 has no wheel for a newer one
stamp="$venv/.pretrain-installed"     # written when everything is in: fingerprint, then extras
begun="$venv/.pretrain-unfinished"    # there while we fill an environment that we made
log="$venv/pretrain-install.log"

die() {
    printf 'launch/env.sh: %s\n' "$*" >&2
    exit 1
}

ensure_environment() { # [dev]
    local extras="${1:-}"
    [[ $extras == "" || $extras == dev ]] || die "unknown extra '$extras': give 'dev' or nothing."
    if is_installed "$extras"; then
        return
    fi
    wait_for_other_installs
    if ! is_installed "$extras"; then
        install_environment "$extras"
    fi
    exec 9<&- # lets the next one in
}

is_installed() { # extras: true if the stamp says that they, or more, are in
    local asked="$1" print="" extras=""
    { read -r print && read -r extras; } 2>/dev/null <"$stamp" || true
    [[ -n $print && ($asked == "" || $asked == "$extras") ]] && venv_is_sound && [[ $print == "$(fingerprint)" ]]
}

write_stamp() { # extras
    printf '%s\n%s\n' "$(fingerprint)" "$1" >"$stamp.new"
    mv -f -- "$stamp.new" "$stamp"
}

fingerprint() { # everything that makes a finished install out of date
    "$venv/bin/python" - "$root" <<'PY'
import hashlib, pathlib, sys
root = sys.argv[1]
parts = (pathlib.Path(root, "pyproject.toml").read_bytes(), sys.version.encode(), root.encode())
print(hashlib.sha256(b"\0".join(parts)).hexdigest())
PY
}

venv_is_sound() { # its Python runs, suits, has pip, and the folder was not moved since (scripts hold its path)
    python_suits "$venv/bin/python" pip && grep -qsF -- "$venv" "$venv/bin/activate"
}

python_suits() { # command, module that it must have
    "$1" -c "
import importlib.util, sys
sys.exit(not ((3, $oldest_python) <= sys.version_info[:2] <= (3, $newest_python) and importlib.util.find_spec('$2')))
" >/dev/null 2>&1
}

find_python() { # prints the newest Python that suits, or says what is missing
    local name version without_venv="" seen=""
    for name in python3.13 python3.12 python3.11 python3 python; do
        version="$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" || continue
        if python_suits "$name" ensurepip; then
            echo "$name"
            return
        fi
        if python_suits "$name" sys; then
            without_venv="$version"
        fi
        seen+=" $name is $version;"
    done
    if [[ -n $without_venv ]]; then
        die "Python $without_venv is here but cannot make environments (no ensurepip)." \
            "On Debian or Ubuntu: apt-get install python$without_venv-venv"
    fi
    die "needs Python 3.$oldest_python to 3.$newest_python on PATH;${seen:- there is none;}" \
        "install one (Debian, Ubuntu: apt-get install python3 python3-venv) and run this again."
}

wait_for_other_installs() { # two commands started at once share one environment
    command -v flock >/dev/null || return 0
    exec 9<"$root/pyproject.toml"
    flock --nonblock 9 && return 0
    echo "another installation is running; waiting for it"
    flock 9 || true # a file system without locks: go on
}

install_environment() { # extras
    local extras="$1" began=$SECONDS target="."
    [[ -z $extras ]] || target=".[$extras]"

    step "[1/4] python environment in $venv"
    make_venv
    rm -f -- "$stamp"
    : >"$log"
    # Older ones fetch a whole wheel to learn what it needs.
    logged "$venv/bin/python" -m pip install "pip>=23.2"

    step "[2/4] torch"
    logged "$venv/bin/python" "$root/launch/torch_build.py"

    step "[3/4] packages"
    # DeepSpeed comes as source: nothing of it is compiled here.
    (cd -- "$root" && DS_BUILD_OPS=0 logged "$venv/bin/python" -m pip install --editable "$target")

    step "[4/4] check"
    logged "$venv/bin/python" "$root/launch/torch_build.py" --check

    write_stamp "$extras"
    rm -f -- "$begun"
    step "environment ready after $((SECONDS - began)) s"
}

make_venv() {
    local python
    if [[ ! -e $begun ]] && venv_is_sound; then
        return # pip brings it up to date in place
    fi
    if [[ $venv != "$root/.venv" && ! -e $begun && -n $(ls -A -- "$venv" 2>/dev/null) ]]; then
        die "PRETRAIN_VENV=$venv holds something that is no usable environment" \
            "(Python 3.$oldest_python to 3.$newest_python with pip, not moved since it was made);" \
            "name a new or empty folder, or remove this one."
    fi
    python="$(find_python)"
    # What an interrupted run left may look whole to pip and not be: begin again, the packages are in pip's cache.
    mkdir -p -- "$venv"
    : >"$begun"
    find "$venv/" -mindepth 1 -maxdepth 1 ! -name "${begun##*/}" -exec rm -rf -- {} +
    "$python" -m venv -- "$venv" || die "$python could not make an environment in $venv."
}

step() { printf '%s\n' "$*"; }

logged() { # command: its output goes to the log, a failure is shown
    local began=$SECONDS
    if ! "$@" 2>&1 | tee -a -- "$log" | show_progress; then
        tail -n 15 -- "$log" >&2
        die "failed: $* (all of its output: $log). Run the same command again to go on."
    fi
    ((SECONDS - began < 2)) || step "      $((SECONDS - began)) s"
}

show_progress() { # of pip's output only large downloads; what torch_build.py says
    local line
    while IFS= read -r line; do
        case "$line" in
        *Downloading*[0-9]" MB)" | *Downloading*[0-9]" GB)") printf '      %s\n' "${line#"${line%%[![:space:]]*}"}" ;;
        "torch: "*) printf '      %s\n' "${line#torch: }" ;;
        esac
    done
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    set -euo pipefail
    ensure_environment "$@"
fi
