"""Errors that a person can mend: the command line prints their text alone and exits. And an end without one."""

import errno

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
SYSTEM_FAULTS = NO_SPACE | {errno.EIO, errno.ESTALE, errno.EROFS}
"""Faults of the system rather than of the path that was given."""


class UserError(Exception):
    """A mistake in what the user gave; the text says which key or file, what it was, what it must be, what to do."""


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
