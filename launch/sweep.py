"""A sweep: members that differ in their overrides, written down in one folder before any is submitted.

sweep.json: {"name", "given": [words], "members": [{"index", "run_dir", "overrides"}],
             "jobs": [{"job", "members", "time"}]}
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.durable import write_durably
from data_pipeline.errors import UserError
from launch.attempts import read_attempts

SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    index: int
    """Its SLURM_ARRAY_TASK_ID."""
    run_dir: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Submitted:
    """A job array of some members."""

    job: str
    members: tuple[int, ...]
    time: float


@dataclass(frozen=True)
class Sweep:
    """What sweep.json holds."""

    name: str
    given: tuple[str, ...]
    members: tuple[Member, ...]
    jobs: tuple[Submitted, ...] = ()

    def after_job(self, job: str, members: Sequence[Member]) -> "Sweep":
        """With one more job, and the overrides that its members have in it."""
        now = {member.index: member for member in members}
        submitted = Submitted(job, tuple(sorted(now)), round(time.time(), 3))
        return replace(self.with_members(members), jobs=(*self.jobs, submitted))

    def with_members(self, members: Sequence[Member]) -> "Sweep":
        """With some of them replaced."""
        now = {member.index: member for member in members}
        return replace(self, members=tuple(now.get(member.index, member) for member in self.members))


def names_of(name: str, number: int) -> list[str]:
    """Names of the runs of a sweep, all of one length."""
    width = len(str(number - 1))
    return [f"{name}-{index:0{width}}" for index in range(number)]


def write_sweep(folder: Path, sweep: Sweep) -> None:
    write_durably(folder / SWEEP_FILE, (json.dumps(asdict(sweep), indent=1, ensure_ascii=False) + "\n").encode())


def read_sweep(folder: Path) -> Sweep:
    """Raises UserError where there is none."""
    path = folder / SWEEP_FILE
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        return Sweep(
            values["name"],
            tuple(values["given"]),
            tuple(Member(m["index"], m["run_dir"], tuple(m["overrides"])) for m in values["members"]),
            tuple(Submitted(j["job"], tuple(j["members"]), j["time"]) for j in values["jobs"]),
        )
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the folder that `pretrain submit -m` made") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not readable as a sweep; restore it or submit the sweep anew") from None


def last_outcome(run_dir: Path) -> str | None:
    """How the last attempt of a run ended: finished, stopped, failed, mistake or lost; None: no attempt has ended."""
    ends = [attempt.ended for attempt in read_attempts(run_dir) if attempt.ended is not None]
    return ends[-1].outcome if ends else None
