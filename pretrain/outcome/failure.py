"""A failure as data: its kind, the ranks that caused it, the stage and the step in which it happened.

Supervisors, `status` and the requeue policy decide by these fields. The message is only for people.
Only the standard library is imported.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from pretrain.exit_codes import ExitCode


class FailureKind(StrEnum):
    """Why an attempt failed."""

    EXCEPTION = "exception"
    """A rank raised an error that has no kind of its own."""
    OUT_OF_MEMORY = "out_of_memory"
    """A rank could not allocate host or device memory."""
    DEVICE_ERROR = "device_error"
    """CUDA, NCCL or the memory of a GPU reported an error."""
    PROCESS_DIED = "process_died"
    """A rank's process exited without reporting an error."""
    KERNEL_KILL = "kernel_kill"
    """A rank's process exited while the kernel killed processes to free memory."""
    UNRESPONSIVE = "unresponsive"
    """A rank no longer answers; its process may still exist."""
    NEVER_JOINED = "never_joined"
    """A rank did not join the others at the start."""
    STUCK = "stuck"
    """A rank keeps the others waiting outside of any collective."""
    DEADLOCK = "deadlock"
    """Every rank is waiting for another."""
    NO_PROGRESS = "no_progress"
    """The only rank of a run made no progress."""
    LAUNCHER_GONE = "launcher_gone"
    """The launcher, through which the ranks met, is gone."""
    USER_ERROR = "user_error"
    RUN_IN_USE = "run_in_use"
    SYSTEM_REFUSED = "system_refused"
    DIVERGED = "diverged"

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a run that failed in this way."""
        return _EXIT_CODES.get(self, ExitCode.FAILED)

    @property
    def may_be_the_node(self) -> bool:
        """Whether a faulty node can be the cause, so that the job may run without it."""
        return self in _MAYBE_THE_NODE


_EXIT_CODES = {
    FailureKind.USER_ERROR: ExitCode.MISTAKE,
    FailureKind.RUN_IN_USE: ExitCode.IN_USE,
    FailureKind.SYSTEM_REFUSED: ExitCode.REFUSED,
    FailureKind.DIVERGED: ExitCode.DIVERGED,
}
_MAYBE_THE_NODE = frozenset(
    {
        FailureKind.DEVICE_ERROR,
        FailureKind.PROCESS_DIED,
        FailureKind.KERNEL_KILL,
        FailureKind.UNRESPONSIVE,
        FailureKind.NEVER_JOINED,
        FailureKind.STUCK,
    }
)


class Stage(StrEnum):
    """The part of a run that a rank is in."""

    START_UP = "start-up"
    TRAINING = "training"
    VALIDATION = "validation"
    SAVING = "saving"
    CLOSING = "closing"
    """The work after the last step: the sample, the report, the trackers."""


@dataclass(frozen=True)
class FailureReport:
    """The first failure of an attempt, the same on all ranks."""

    kind: FailureKind
    message: str
    """One line for people. It names the rank and the cause."""
    ranks: tuple[int, ...] = ()
    """The ranks that caused it; empty if none of them did."""
    coordinates: str = ""
    """The place of the first of these ranks in the layout."""
    host: str = ""
    stage: Stage | None = None
    step: int | None = None
    details: str = ""
    """Stacks, to be shown before the message."""

    def __str__(self) -> str:
        return f"{self.details.rstrip()}\n{self.message}" if self.details else self.message

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them; `from_dict` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FailureReport":
        """Raises ValueError, KeyError or TypeError if the fields are not those of a report."""
        stage = None if values["stage"] is None else Stage(values["stage"])
        return cls(
            **{**values, "kind": FailureKind(values["kind"]), "ranks": tuple(values["ranks"]), "stage": stage},
        )
