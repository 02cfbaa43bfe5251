"""Configuration mistakes, gathered and told all at once."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.config_text import written
from data_pipeline.errors import SystemRefused, UserError
from pretrain.exit_codes import ExitCode

MISSING = object()


@dataclass(frozen=True)
class Problem:
    """One broken rule: which key, what it was (`MISSING`: it has no value), what it must be, what to do.

    A rule about several keys names them all, with commas, and has a tuple of their values.
    """

    key: str
    value: object
    rule: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self._given()}: {self.rule}"
        return f"{text}; {self.remedy}" if self.remedy else text

    def _given(self) -> str:
        keys = self.key.split(", ")
        if len(keys) > 1 and isinstance(self.value, tuple) and len(self.value) == len(keys):
            return ", ".join(f"{key}={written(value)}" for key, value in zip(keys, self.value, strict=True))
        return self.key if self.value is MISSING else f"{self.key}={written(self.value)}"


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

    def __init__(self, text: str, step: int | None = None) -> None:
        super().__init__(text)
        self.step = step


def code_of_refusal(error: UserError) -> ExitCode:
    """The exit code, by whose turn it is: the user's, the system's, or that of another process."""
    if isinstance(error, SystemRefused):
        return ExitCode.REFUSED
    return ExitCode.IN_USE if isinstance(error, RunInUse) else ExitCode.MISTAKE
