"""The commands of Slurm that a login node uses."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import UserError


def sbatch(script: Path) -> str:
    """Submit; the job's id. Raises UserError with Slurm's own words where it refuses."""
    # --parsable: the id, and after a semicolon the cluster's name.
    return _run(["sbatch", "--parsable", str(script)]).strip().split(";")[0]


def live_members(jobs: Sequence[str]) -> set[int]:
    """Indexes of the tasks of these job arrays that wait or run."""
    lines = _run(["squeue", "--me", "--array", "--noheader", "--format=%F %K"]).splitlines() if jobs else []
    return {int(index) for job, index in map(str.split, lines) if job in jobs and index.isdecimal()}


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"there is no {command[0]} on the PATH: this is no login node of a Slurm cluster") from None
    if done.returncode:
        raise UserError(f"`{' '.join(command)}` fails: {' '.join(done.stderr.split())}")
    return done.stdout
