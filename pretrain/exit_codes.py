"""The exit codes of `pretrain` and of the programs that start it: one table of codes, meanings and outcomes.

Only the standard library is imported, because login nodes, batch scripts and supervisors read this module.
"""

from enum import IntEnum
from typing import Literal

Outcome = Literal["finished", "stopped", "interrupted", "failed", "mistake", "lost"]
"""How an attempt ended.

stopped: saved and to be continued, or nothing was trained. interrupted: Slurm ended it before it could save.
mistake: the user's. lost: its node is lost, or its end was not seen.
"""


class ExitCode(IntEnum):
    """A code with a meaning of its own. Every other code is a signal's, or the system's."""

    DONE = 0
    FAILED = 1
    MISTAKE = 2
    BAD_NODE = 3
    DIVERGED = 4
    IN_USE = 69
    REFUSED = 74
    STOPPED = 75
    NOT_READ = 141

    @property
    def meaning(self) -> str:
        """One line for people."""
        return _TABLE[self][0]

    @property
    def outcome(self) -> Outcome:
        """The outcome of an attempt that ended with this code."""
        return _TABLE[self][1]


_TABLE: dict[ExitCode, tuple[str, Outcome]] = {
    ExitCode.DONE: ("done", "finished"),
    ExitCode.FAILED: ("failed; the log has the traceback", "failed"),
    ExitCode.MISTAKE: ("a mistake in what was given; the message says what to do", "mistake"),
    ExitCode.BAD_NODE: ("a node is bad (launch.nodes.preflight)", "failed"),
    ExitCode.DIVERGED: ("training diverged: more bad steps than train.max_bad_steps allows", "failed"),
    # The holder may be an attempt on a node that is out of reach: it ends sooner or later.
    ExitCode.IN_USE: ("the run folder is in use by another live process", "failed"),
    # A full disk may have room later.
    ExitCode.REFUSED: (
        "the system refused: no space, no permission, a bad disk or server; the message names the file",
        "failed",
    ),
    ExitCode.STOPPED: ("stopped by a signal and saved, to be continued by the same command", "stopped"),
    ExitCode.NOT_READ: (
        "the output is not read to its end, as by `| head`; shells use this code for SIGPIPE",
        "failed",
    ),
}

_SIGNAL_BASE = 128
LEAST_SIGNAL_CODE = _SIGNAL_BASE + 1


def exit_code_of(returncode: int) -> int:
    """The exit code that a shell shows for `returncode` of the subprocess module: 128 plus the signal's number."""
    return returncode if returncode >= 0 else _SIGNAL_BASE - returncode


def outcome_of(code: int) -> Outcome:
    """The outcome for any exit code. A code outside the table, such as that of a killed process, is a failure."""
    return ExitCode(code).outcome if code in _TABLE else "failed"
