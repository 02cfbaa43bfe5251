#!/usr/bin/env bash
# Creates the Python environment unless it exists: `bash launch/env.sh` or `bash launch/env.sh dev`.
# It is in .venv, or in the folder that $PRETRAIN_VENV names. A second run only compares a stamp.
# If sourced, it defines `venv`, `root` and `ensure_environment`, and installs nothing.

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${PRETRAIN_VENV:-$root/.venv}"
[[ $venv == /* ]] || venv="$PWD/$venv"

oldest_python=11   # 3.11: tomllib; the same bound as in pyproject.toml
newest_python=13   # 3.13: megatron-core 0.16 has no wheel for newer versions
stamp="$venv/.pretrain-installed"     # written after a complete installation: fingerprint, then extras
unfinished="$venv/.pretrain-unfinished"    # exists during the first installation into an environment that this script made
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
    exec 9<&- # releases the lock
}

is_installed() { # extras: true if the stamp says that these, or more, are installed
    local asked="$1" print="" extras=""
    { read -r print && read -r extras; } 2>/dev/null <"$stamp" || true
    [[ -n $print && ($asked == "" || $asked == "$extras") ]] && venv_is_sound && [[ $print == "$(fingerprint)" ]]
}

write_stamp() { # extras
    printf '%s\n%s\n' "$(fingerprint)" "$1" >"$stamp.new"
    mv -f -- "$stamp.new" "$stamp"
}

fingerprint() { # changes when an installation is out of date
    "$venv/bin/python" - "$root" <<'PY'
import hashlib, pathlib, sys
root = sys.argv[1]
parts = (pathlib.Path(root, "pyproject.toml").read_bytes(), sys.version.encode(), root.encode())
print(hashlib.sha256(b"\0".join(parts)).hexdigest())
PY
}

venv_is_sound() { # its Python runs, has a supported version and pip, and the folder was not moved (scripts contain its path)
    is_supported "$venv/bin/python" pip && grep -qsF -- "$venv" "$venv/bin/activate"
}

is_supported() { # command, module: its version is supported and it has the module
    "$1" -c "
import importlib.util, sys
sys.exit(not ((3, $oldest_python) <= sys.version_info[:2] <= (3, $newest_python) and importlib.util.find_spec('$2')))
" >/dev/null 2>&1
}

find_python() { # prints the newest supported Python, or exits with what is missing
    local name version without_venv="" seen=""
    for name in python3.13 python3.12 python3.11 python3 python; do
        version="$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" || continue
        if is_supported "$name" ensurepip; then
            echo "$name"
            return
        fi
        if is_supported "$name" sys; then
            without_venv="$version"
        fi
        seen+=" $name is $version;"
    done
    if [[ -n $without_venv ]]; then
        die "Python $without_venv is here but cannot make environments (no ensurepip)." \
            "On Debian or Ubuntu: apt-get install python$without_venv-venv"
    fi
    die "needs Python 3.$oldest_python to 3.$newest_python on PATH;${seen:- no Python was found;}" \
        "install one (Debian, Ubuntu: apt-get install python3 python3-venv) and run this again."
}

wait_for_other_installs() { # two commands started at the same time share one environment
    command -v flock >/dev/null || return 0
    exec 9<"$root/pyproject.toml"
    flock --nonblock 9 && return 0
    echo "another installation is running; waiting for it"
    flock 9 || true # a file system without locks: continue
}

install_environment() { # extras
    local extras="$1" began=$SECONDS target="."
    [[ -z $extras ]] || target=".[$extras]"

    step "[1/4] python environment in $venv"
    make_venv
    rm -f -- "$stamp"
    : >"$log"
    # Older versions download a whole wheel to read its requirements.
    logged "$venv/bin/python" -m pip install "pip>=23.2"

    step "[2/4] torch"
    logged "$venv/bin/python" "$root/launch/torch_build.py"

    step "[3/4] packages"
    # DeepSpeed is installed from source: none of its ops is compiled here.
    (cd -- "$root" && DS_BUILD_OPS=0 logged "$venv/bin/python" -m pip install --editable "$target")

    step "[4/4] check"
    logged "$venv/bin/python" "$root/launch/torch_build.py" --check

    write_stamp "$extras"
    rm -f -- "$unfinished"
    step "environment ready after $((SECONDS - began)) s"
}

make_venv() {
    local python
    if [[ ! -e $unfinished ]] && venv_is_sound; then
        return # pip updates it in place
    fi
    if [[ $venv != "$root/.venv" && ! -e $unfinished && -n $(ls -A -- "$venv" 2>/dev/null) ]]; then
        die "PRETRAIN_VENV=$venv is not empty and not a usable environment" \
            "(Python 3.$oldest_python to 3.$newest_python with pip, not moved since it was made);" \
            "name a new or empty folder, or remove this one."
    fi
    python="$(find_python)"
    # pip may take the remains of an interrupted run for complete: start again, the packages are in pip's cache.
    mkdir -p -- "$venv"
    : >"$unfinished"
    find "$venv/" -mindepth 1 -maxdepth 1 ! -name "${unfinished##*/}" -exec rm -rf -- {} +
    "$python" -m venv -- "$venv" || die "$python could not make an environment in $venv."
}

step() { printf '%s\n' "$*"; }

logged() { # command: writes its output to the log, and shows it on failure
    local began=$SECONDS
    if ! "$@" 2>&1 | tee -a -- "$log" | show_progress; then
        tail -n 15 -- "$log" >&2
        die "failed: $* (all of its output: $log). Run the same command again to continue."
    fi
    ((SECONDS - began < 2)) || step "      $((SECONDS - began)) s"
}

show_progress() { # shows large downloads of pip, and what torch_build.py prints
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
