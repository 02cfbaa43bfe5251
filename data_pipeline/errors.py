"""Errors that the user can fix. The command line prints their text without a traceback and exits."""

import errno
from collections.abc import Iterable

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
SYSTEM_FAULTS = NO_SPACE | {errno.EIO, errno.ESTALE, errno.EROFS}
"""Faults of the system rather than of the path that was given."""


class UserError(Exception):
    """An error that the user can fix: `message` says which key or file, what it was, what it must be.

    Each hint is one thing to do about it, and is printed on its own line below the message.
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


def error_line(error: BaseException) -> str:
    """Any error on one line, without the name of its type."""
    return error.one_line if isinstance(error, UserError) else " ".join(str(error).split())


def hint_lines(hints: Iterable[str]) -> list[str]:
    """The lines below a message; the further lines of a long hint are indented below its first."""
    return ["  hint: " + hint.replace("\n", "\n        ") for hint in hints]


def in_one_line(message: str, hints: Iterable[str]) -> str:
    text = " ".join(message.split())
    advice = "; ".join(" ".join(hint.split()) for hint in hints)
    return f"{text} (hint: {advice})" if advice else text


class DataError(UserError):
    """Text, a tokenizer or a prepared dataset that cannot be used as it is."""


class NewerFormat(DataError):
    """Something that a newer version of pretrain wrote: it is whole, and must not be replaced."""


class MissingPackage(DataError):
    """An optional package that is needed here is not installed."""


class Unencodable(DataError):
    """A text that a tokenizer cannot encode; others it can."""


class InputError(DataError):
    """What an entry of some inputs names cannot be used as text; whoever has the inputs says which key they are."""


class BadFile(DataError):
    """One file of a dataset that stays missing, unreadable or damaged, whatever was tried; others may be whole."""


class SystemRefused(UserError):
    """The system did not do what was asked: no space, no permission, a disk that fails. Once that is fixed, the same
    command continues."""


class NoSpace(DataError, SystemRefused):
    """The disk has no room for data."""


class Unreachable(BadFile, SystemRefused):
    """A file elsewhere that was not to be had, however often it was asked for: a server or the network may be back."""


class WorkInterrupted(DataError):
    """Work that stopped through nobody's mistake, and goes on where it was."""


class Stopped(Exception):
    """Nobody waits for this any more."""
