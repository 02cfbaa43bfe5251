"""Errors of a configuration or a run folder. A configuration reports all its problems at once."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.config_text import written
from data_pipeline.errors import ErrorWithHints, SystemRefused, UserError, hint_lines, in_one_line

MISSING = object()


@dataclass(frozen=True)
class Problem:
    """One broken rule: the key, its value (`MISSING` if it has none), the rule, and a hint about what to do.

    A rule about several keys names them all, separated by commas, and has a tuple of their values.
    """

    key: str
    value: object
    rule: str
    hint: str = ""

    @property
    def message(self) -> str:
        return f"{self._given()}: {self.rule}"

    @property
    def hints(self) -> tuple[str, ...]:
        return (self.hint,) if self.hint else ()

    def __str__(self) -> str:
        return "\n".join([self.message, *hint_lines(self.hints)])

    def _given(self) -> str:
        keys = self.key.split(", ")
        if len(keys) > 1 and isinstance(self.value, tuple) and len(self.value) == len(keys):
            return ", ".join(f"{key}={written(value)}" for key, value in zip(keys, self.value, strict=True))
        return self.key if self.value is MISSING else f"{self.key}={written(self.value)}"


class ConfigError(UserError):
    """The configuration has one or more problems; the text lists them all, each with its hint."""

    def __init__(self, problems: Sequence[Problem | str]) -> None:
        self.problems = list(problems)
        if len(self.problems) == 1:
            super().__init__(*_message_and_hints(self.problems[0]))
        else:
            entries = "".join("\n  " + str(problem).replace("\n", "\n  ") for problem in self.problems)
            super().__init__(f"the configuration has {len(self.problems)} problems:{entries}")

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[Problem | str]]]:
        return type(self), (self.problems,)

    @property
    def one_line(self) -> str:
        """All problems on one line, each with its hint in parentheses."""
        return "; ".join(in_one_line(message, hints) for message, *hints in map(_message_and_hints, self.problems))


def _message_and_hints(problem: Problem | str) -> tuple[str, ...]:
    return (problem,) if isinstance(problem, str) else (problem.message, *problem.hints)


class RunError(UserError):
    """A run folder or checkpoint that cannot be used as asked."""


class RunRefused(RunError, SystemRefused):
    """The system refused to read or write a run folder or checkpoint."""


class RunInUse(RunError):
    """Another live process holds the run folder."""


class TrainingDiverged(ErrorWithHints):
    """Training met NaN or infinite losses or gradients more often than allowed; the message says where."""

    def __init__(self, message: str, *hints: str, step: int | None = None) -> None:
        super().__init__(message, *hints)
        self.step = step
