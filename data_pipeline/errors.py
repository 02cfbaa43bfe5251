"""Errors that the user can fix. The command line prints their text without a traceback and exits."""

import errno
from collections.abc import Iterable

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
SYSTEM_FAULTS = NO_SPACE | {errno.EIO, errno.ESTALE, errno.EROFS}
"""Faults of the system rather than of the path that was given."""


class ErrorWithHints(Exception):
    """An error whose `message` says what happened, and whose hints each say one thing to do about it.

    Each hint is printed on its own line below the message.
    """

    def __init__(self, message: object = "", *hints: str) -> None:
        super().__init__(message, *hints)
        self.message = str(message)
        self.hints = tuple(hint for hint in hints if hint)

    def __str__(self) -> str:
        return "\n".join([self.message, *hint_lines(self.hints)])

    @property
    def one_line(self) -> str:
        """Message and hints on one line, for a log line or a table that holds the error."""
        return in_one_line(self.message, self.hints)


class UserError(ErrorWithHints):
    """An error that the user can fix: `message` says which key or file, what it was, what it must be."""


def error_line(error: BaseException) -> str:
    """Any error on one line, without the name of its type."""
    return error.one_line if isinstance(error, ErrorWithHints) else " ".join(str(error).split())


def hint_lines(hints: Iterable[str]) -> list[str]:
    """The lines below a message; the further lines of a long hint are indented below its first."""
    return ["  hint: " + hint.replace("\n", "\n        ") for hint in hints]


def in_one_line(message: str, hints: Iterable[str]) -> str:
    text = " ".join(message.split())
    advice = "; ".join(" ".join(hint.split()) for hint in hints)
    return f"{text} (hint: {advice})" if advice else text


class DataError(UserError):
    """Text, a tokenizer or a prepared dataset that cannot be used."""


class NewerFormat(DataError):
    """A file that a newer version of pretrain wrote. It is valid and must not be replaced."""


class MissingPackage(DataError):
    """An optional package that is needed here is not installed."""


class Unencodable(DataError):
    """A text that a tokenizer cannot encode."""


class InputError(DataError):
    """An input that cannot be used as text. The caller adds the key that names it."""


class BadFile(DataError):
    """One file of a dataset that stays missing, unreadable or damaged after all retries."""


class SystemRefused(UserError):
    """The system refused: no space, no permission, or a failing disk.

    Once that is fixed, the same command continues.
    """


class NoSpace(DataError, SystemRefused):
    """The disk has no room for data."""


class Unreachable(BadFile, SystemRefused):
    """A remote file that could not be read after all retries. The server or network may recover."""


class WorkInterrupted(DataError):
    """Work that was interrupted without a mistake of the user. Running it again continues it."""


class Stopped(Exception):
    """The result is no longer needed."""
