"""The exit codes of `pretrain` and of what starts it: one code for each meaning, in one table.

Only the standard library is imported: login nodes, batch scripts and supervisors read this module.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """A code that has a meaning here; every other one is a signal's, or the system's."""

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
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "failed; the log has the traceback",
    ExitCode.MISTAKE: "a mistake in what was given; the message says what to do",
    ExitCode.BAD_NODE: "a node is bad (launch.nodes.preflight)",
    ExitCode.DIVERGED: "training diverged: more bad steps than train.max_bad_steps allows",
    ExitCode.IN_USE: "the run folder is in use by another live process",
    ExitCode.REFUSED: "the system refused: no space, no permission, a bad disk or server; the message names the file",
    ExitCode.STOPPED: "stopped by a signal and saved, to be continued by the same command",
    ExitCode.NOT_READ: "the output is not read to its end, as by `| head`; shells use this code for SIGPIPE",
}

_SIGNAL_BASE = 128


def exit_code_of(returncode: int) -> int:
    """The exit code that a shell shows for `returncode` of the subprocess module: 128 and the signal's number."""
    return returncode if returncode >= 0 else _SIGNAL_BASE - returncode
