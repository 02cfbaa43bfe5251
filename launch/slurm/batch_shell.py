"""The shell's part of a batch script: it keeps Slurm's signals until Python, which takes seconds to start, reads them.

The scripts in slurm/ have the same lines.
"""

from launch.slurm.job_signals import PIPE
from launch.termination import SIGNALS

_NAMES = " ".join(number.name.removeprefix("SIG") for number in SIGNALS)
_TRAPS = "; ".join(f"trap 'keep {name}' {name}" for name in _NAMES.split())

LISTEN = f"""\
# From here on Slurm's signals are kept until Python, which takes seconds to start, reads them.
keep() {{ kept+="$1 "; [[ -z ${{{PIPE}:-}} ]] || echo "$1" >&"${PIPE}"; }}
{_TRAPS}
exec {{{PIPE}}}<> <(:)
export {PIPE}
[[ -z ${{kept:-}} ]] || echo "$kept" >&"${PIPE}"
"""
"""The first lines."""


def run(command: str) -> str:
    """The last lines, which run `command` as a child of this shell and end with the command's exit code.

    The shell polls instead of blocking in `wait`, because the trap of a signal that arrives just before `wait` would
    run only after the command has ended.
    """
    return f"""\
(trap '' {_NAMES}; exec {command}) &
supervisor=$!
exec {{never}}<> <(:)
while kill -0 "$supervisor" 2>/dev/null; do read -r -t 1 -u "$never" || true; done # traps run in between
wait "$supervisor"
"""
