"""One task of a job array: `python -m launch.slurm.array_task SWEEP` supervises the sweep member with its index."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from pretrain.exit_codes import ExitCode
from pretrain.run.sweep import read_sweep


def command_of(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The command of this task; raises UserError if the sweep has no such member."""
    if len(arguments) != 1:
        raise UserError("expected one argument: the folder of a sweep, such as sweeps/NAME")
    members = {str(member.index): member for member in read_sweep(Path(arguments[0])).members}
    index = environment.get("SLURM_ARRAY_TASK_ID")
    if index not in members:
        raise UserError(
            f"SLURM_ARRAY_TASK_ID={index}: {arguments[0]} has members 0 to {len(members) - 1}; "
            f"submit with --array=0-{len(members) - 1}"
        )
    return [sys.executable, "-u", "-m", "launch.slurm.supervise", *members[index].overrides]


def main() -> None:
    """Never returns."""
    try:
        command = command_of(sys.argv[1:], os.environ)
    except UserError as error:
        sys.stderr.write(f"launch.slurm.array_task: error: {error}\n")
        sys.exit(ExitCode.MISTAKE)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
