"""A sweep: members that differ in their overrides, written down in one folder before any of them starts.

sweep.json: {"name", "given": [words], "members": [{"index", "run_dir", "overrides"}],
             "jobs": [{"job", "members", "time"}]}
The words are stored as they were given, with their secrets, because the members start from them; `as_shown` is for all
that people see.
"""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UserError
from data_pipeline.storage.atomic_write import write_durably
from pretrain.run.attempts import read_attempts

if TYPE_CHECKING:
    from pretrain.config.run import RunConfig

SWEEPS = Path("sweeps")
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
    """The content of sweep.json."""

    name: str
    given: tuple[str, ...]
    members: tuple[Member, ...]
    jobs: tuple[Submitted, ...] = ()

    def after_job(self, job: str, members: Sequence[Member]) -> "Sweep":
        """A copy with this job added, and with its members replaced by `members`."""
        now = {member.index: member for member in members}
        submitted = Submitted(job, tuple(sorted(now)), round(time.time(), 3))
        return replace(self.with_members(members), jobs=(*self.jobs, submitted))

    def with_members(self, members: Sequence[Member]) -> "Sweep":
        """A copy in which `members` replace those of the same index."""
        now = {member.index: member for member in members}
        return replace(self, members=tuple(now.get(member.index, member) for member in self.members))


def words_of_members(name: str, overrides: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """The overrides of every combination, by index. They include the run's name and the sweep's group.

    Raises UserError if nothing is swept, or the name cannot be used.
    """
    from pretrain.config.load import sweep_members

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"--name {name}: must be letters, digits and any of _.-")
    grid = sweep_members(overrides)
    width = len(str(len(grid) - 1))
    # Before the given words, which win.
    return {
        index: (f"run.name={name}-{index:0{width}}", f"tracking.wandb_group={name}", *words)
        for index, words in enumerate(grid)
    }


def as_shown(words: Sequence[str]) -> str:
    """The words without secrets, and without the backslashes that Hydra puts before colons."""
    from pretrain.config.redact import public_words
    from pretrain.config.search_path import as_arguments

    return " ".join(public_words([word.replace("\\:", ":") for word in as_arguments(words)]))


def free_name() -> str:
    """A name that no sweep in this folder has."""
    number = 1
    while (SWEEPS / f"sweep-{number}").exists():
        number += 1
    return f"sweep-{number}"


def check_members(
    words: Mapping[int, tuple[str, ...]], check: "Callable[[RunConfig], object]", refusal: str
) -> "dict[int, RunConfig]":
    """The configurations by index. The UserError begins with `refusal` and lists every member that cannot run."""
    from pretrain.config.load import load_run_config

    configs: dict[int, RunConfig] = {}
    faults: dict[str, list[int]] = {}
    for index, overrides in words.items():
        try:
            configs[index] = load_run_config(overrides)
            check(configs[index])
        except UserError as error:
            faults.setdefault(str(error).replace("\n", "\n  "), []).append(index)
    if faults:
        lines = (
            f"\n  member {', '.join(map(str, of))} ({as_shown(words[of[0]])}): {text}" for text, of in faults.items()
        )
        raise UserError("".join((f"{refusal}:", *lines)))
    folders = [config.run.dir for config in configs.values()]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise UserError(
            f"run.dir={twice}: more than one member would use it", "leave run.name and run.dir to the sweep"
        )
    return configs


def write_sweep(folder: Path, sweep: Sweep) -> None:
    write_durably(folder / SWEEP_FILE, (json.dumps(asdict(sweep), indent=1, ensure_ascii=False) + "\n").encode())


def read_sweep(folder: Path) -> Sweep:
    """Read the sweep in a folder; raises UserError if there is no sweep, or it is damaged."""
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
        raise UserError(f"{path}: {error.strerror}", "give the folder that `pretrain submit -m` made") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a valid sweep record", "restore it or submit the sweep again") from None


def last_outcome(run_dir: Path) -> str | None:
    """How the last attempt of a run ended: finished, stopped, failed, mistake or lost; None: no attempt has ended."""
    ends = [attempt.ended for attempt in read_attempts(run_dir) if attempt.ended is not None]
    return ends[-1].outcome if ends else None
