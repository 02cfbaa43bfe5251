"""Configuration mistakes, gathered and told all at once."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.errors import SystemRefused, UserError
from pretrain.exit_codes import ExitCode


@dataclass(frozen=True)
class Problem:
    """One broken rule: which key, what it was, what it must be, what to do."""

    key: str
    value: object
    rule: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.key}={self.value!r}: {self.rule}"
        return f"{text}; {self.remedy}" if self.remedy else text


class ConfigError(UserError):
    """The configuration cannot be run as it is."""

    def __init__(self, problems: Sequence[Problem | str]) -> None:
        self.problems = list(problems)
        lines = [str(problem) for problem in self.problems]
        super().__init__(lines[0] if len(lines) == 1 else "".join(f"\n  {line}" for line in lines))


class RunError(UserError):
    """A run folder or checkpoint that cannot be used as asked."""


class RunRefused(RunError, SystemRefused):
    """The system refused to read or write a run folder or checkpoint."""


class RunInUse(RunError):
    """Another live process holds the run folder."""


class TrainingDiverged(Exception):
    """Training met NaN or infinite losses or gradients more often than allowed; the text says where."""


def code_of_refusal(error: UserError) -> ExitCode:
    """The exit code, by whose turn it is: the user's, the system's, or that of another process."""
    if isinstance(error, SystemRefused):
        return ExitCode.REFUSED
    return ExitCode.IN_USE if isinstance(error, RunInUse) else ExitCode.MISTAKE
