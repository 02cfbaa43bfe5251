"""`pretrain train -m`: every combination of the given values trains here, one after the other, in its own process.

The sweep is listed in sweeps/NAME/sweep.json as `pretrain submit -m` lists it. The same command skips the finished
members and resumes the interrupted ones.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from data_pipeline.child_process import die_with_parent
from data_pipeline.errors import UserError
from pretrain.exit_codes import ExitCode, exit_code_of
from pretrain.run.sweep import (
    SWEEPS,
    Member,
    Sweep,
    as_shown,
    check_members,
    free_name,
    read_sweep,
    words_of_members,
    write_sweep,
)
from pretrain.std_streams import drop_hung_up_output

if TYPE_CHECKING:
    from pretrain.tracking.comparison import Cell

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
ASKED_CODES = {exit_code_of(-number) for number in FORWARDED}
"""Exit codes of a member that got a signal before its signal handlers were installed."""
FIRST = 2
"""If the first so many members are refused, the others are not started: they would be refused as well."""


def run(given: argparse.Namespace) -> int:
    """Train all members that are not finished; the exit code: stopped, else failed if one failed, else done."""
    refuse_launcher(os.environ)
    sweep, is_new = find_or_make(given.name, given.overrides)
    rest = [member for member in sweep.members if not is_finished(member)]
    configs = check_members({member.index: member.overrides for member in rest}, check_here, "nothing was started")
    # A new member's run folder is known only now.
    rest = [Member(member.index, configs[member.index].run.dir, member.overrides) for member in rest]
    sweep = sweep.with_members(rest)
    say(f"{sweep.name}: {len(sweep.members)} legal runs, {len(sweep.members) - len(rest)} finished before")
    if given.check:
        return ExitCode.DONE
    folder = SWEEPS / sweep.name
    if is_new:
        folder.mkdir(parents=True, exist_ok=True)
    write_sweep(folder, sweep)
    codes, asked = train_members(sweep, rest, folder)
    print_result(sweep, codes, folder)
    if ExitCode.STOPPED in codes.values() or (asked and len(codes) < len(rest)):
        return ExitCode.STOPPED
    return ExitCode.FAILED if any(codes.values()) or len(codes) < len(rest) else ExitCode.DONE


def refuse_launcher(environment: Mapping[str, str]) -> None:
    """Raise UserError under torchrun or in a Slurm step: every rank would train all combinations."""
    from pretrain.distributed.grid import world_from_environment

    if "WORLD_SIZE" in environment or world_from_environment()[1] > 1:
        raise UserError(
            "-m: cannot be used with a launcher, because each combination trains in a process of its own",
            "run `pretrain train -m` without torchrun or srun, or use `pretrain submit -m` on a cluster",
        )


def find_or_make(name: str | None, overrides: Sequence[str]) -> tuple[Sweep, bool]:
    """The sweep that these overrides made before, or a new one, and whether it is new.

    Raises UserError if the name belongs to another sweep.
    """
    given = tuple(overrides)
    for path in sorted(SWEEPS.glob("*/sweep.json")) if name is None else []:
        sweep = read_sweep(path.parent)
        if sweep.given == given and not sweep.jobs:
            return sweep, False
    name = name or free_name()
    folder = SWEEPS / name
    if (folder / "sweep.json").exists():
        sweep = read_sweep(folder)
        if sweep.jobs:
            raise UserError(f"--name {name}: {folder} was submitted to Slurm", f"pretrain submit --rerun {folder}")
        if sweep.given != given:
            raise UserError(
                f"--name {name}: {folder} was created with other overrides: {as_shown(sweep.given)}",
                "give the same overrides to continue it, or another --name",
            )
        return sweep, False
    members = tuple(Member(index, "", each) for index, each in words_of_members(name, given).items())
    return Sweep(name, given, members), True


def check_here(config: object) -> None:
    """Raise UserError if this run cannot be trained here in one process; needs no torch."""
    from pretrain.commands.training_run import check_inputs
    from pretrain.config.run import RunConfig

    assert isinstance(config, RunConfig)
    check_inputs(config, rank=0, world_size=1)


def is_finished(member: Member) -> bool:
    """Whether the last attempt of this member trained to the end."""
    from pretrain.run.outcome import read_outcome

    outcome = read_outcome(Path(member.run_dir)) if member.run_dir else None
    return outcome is not None and outcome.state == "finished"


def train_members(sweep: Sweep, members: Sequence[Member], folder: Path) -> tuple[dict[int, int], bool]:
    """Train one after the other.

    Returns the exit codes of those that were started, by index, and whether a signal asked for a stop.
    """
    codes: dict[int, int] = {}
    labels = labels_of(sweep)
    with Forwarding() as forwarding:
        for number, member in enumerate(members, 1):
            say(f"\n== {number} of {len(members)}: {member.run_dir}  {labels[member.index]}")
            codes[member.index] = forwarding.run([sys.executable, "-m", "pretrain", "train", *member.overrides])
            compare(sweep, codes, folder)
            if codes[member.index] == ExitCode.STOPPED or forwarding.asked:
                break
            if number < len(members) and is_common(list(codes.values())):
                say(f"\nthe first {FIRST} ended with exit code {codes[member.index]}: the others are not started")
                break
    return codes, forwarding.asked


def is_common(codes: Sequence[int]) -> bool:
    """Whether the first members all ended with a mistake, or all with a refusal of the system such as a full disk."""
    return len(codes) == FIRST and codes[0] in (ExitCode.MISTAKE, ExitCode.REFUSED) and len(set(codes)) == 1


class Forwarding:
    """Runs a child at a time and passes on the signals that this process gets.

    The child has a process group of its own: a Ctrl-C reaches it once, from here. SIGHUP, which comes when a terminal
    is closed, stays ignored if it is ignored at the start, as under nohup.
    """

    def __init__(self) -> None:
        self.asked = False
        """Whether a signal came."""
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Forwarding":
        is_kept = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        forwarded = [number for number in FORWARDED if not (is_kept and number == signal.SIGHUP)]
        self._previous = {number: signal.signal(number, self._pass_on) for number in forwarded}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str]) -> int:
        """The exit code as a shell shows it; STOPPED also if a forwarded signal ended the child at its start."""
        self._child = subprocess.Popen(command, preexec_fn=die_with_parent, process_group=0)
        if self.asked:  # before there was a child
            self._child.terminate()
        code = exit_code_of(self._child.wait())
        self._child = None
        return ExitCode.STOPPED if self.asked and code in ASKED_CODES else code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if number == signal.SIGHUP:
            drop_hung_up_output()
        if self._child is not None:
            self._child.send_signal(number)


def compare(sweep: Sweep, codes: Mapping[int, int], folder: Path) -> None:
    """Write the comparison; on a full disk, the next member still starts."""
    from pretrain.tracking.comparison import write_comparison

    try:
        write_comparison(folder, sweep.name, cells_of(sweep, codes))
    except OSError as error:
        say(f"{folder}: no comparison: {error}")


def cells_of(sweep: Sweep, codes: Mapping[int, int]) -> "list[Cell]":
    """All members for the table; `codes`: the exit codes of those that ended now."""
    from pretrain.tracking.comparison import Cell

    labels = labels_of(sweep)
    return [Cell(labels[each.index], Path(each.run_dir), codes.get(each.index)) for each in sweep.members]


def labels_of(sweep: Sweep) -> dict[int, str]:
    """Index -> the overrides that only this member has, without secrets, and its name if two would look the same."""
    common = set.intersection(*(set(member.overrides) for member in sweep.members))
    # The first two are the name of the run and the group of the sweep.
    own = [as_shown([each for each in member.overrides[2:] if each not in common]) for member in sweep.members]
    count = Counter(own)
    return {
        member.index: label if label and count[label] == 1 else f"{label} {member.overrides[0]}".strip()
        for member, label in zip(sweep.members, own, strict=True)
    }


def print_result(sweep: Sweep, codes: Mapping[int, int], folder: Path) -> None:
    """Print the table and the paths of the comparison."""
    from pretrain.tracking.comparison import as_text

    cells = cells_of(sweep, codes)
    if not codes:
        compare(sweep, codes, folder)
    sys.stdout.write(f"\n{as_text(cells)}\n  comparison  {folder}/comparison.html {folder}/comparison.png\n")
    if any(cell.state != "finished" for cell in cells):
        sys.stdout.write("next:\n  the same command  # skips the finished runs and resumes the others\n")
    sys.stdout.flush()


def say(line: str) -> None:
    """Print to stderr; stdout has the table."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
