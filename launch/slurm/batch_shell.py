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
    """The last lines: `command` runs beside this shell, whose exit code is that of the command.

    The shell does not block in `wait`: a signal that comes just before it blocks has its trap run only afterwards.
    """
    return f"""\
(trap '' {_NAMES}; exec {command}) &
supervisor=$!
exec {{never}}<> <(:)
while kill -0 "$supervisor" 2>/dev/null; do read -r -t 1 -u "$never" || true; done # traps run in between
wait "$supervisor"
"""
