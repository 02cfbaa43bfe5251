"""The exit codes of `pretrain`, as supervision takes them: what an attempt that ended with each came to."""

from collections.abc import Mapping

from pretrain.exit_codes import ExitCode
from pretrain.run.attempts import Outcome

OUTCOMES: Mapping[ExitCode, Outcome] = {
    ExitCode.DONE: "finished",
    ExitCode.FAILED: "failed",
    ExitCode.MISTAKE: "mistake",
    ExitCode.BAD_NODE: "failed",
    ExitCode.DIVERGED: "failed",
    ExitCode.IN_USE: "failed",  # by an attempt on a node that is out of reach: it ends sooner or later
    ExitCode.REFUSED: "failed",  # a full disk may have room again
    ExitCode.STOPPED: "stopped",
    ExitCode.NOT_READ: "failed",
}


def outcome_of(code: int) -> Outcome:
    """The outcome for any exit code; one that is not in the table, as of a killed process, is a failure."""
    return OUTCOMES[ExitCode(code)] if code in OUTCOMES else "failed"
