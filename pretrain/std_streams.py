"""The standard streams: closed ones, ones that are no longer read, and errors of the system that need no traceback."""

import errno
import os
import select
import sys

STDOUT, STDERR = 1, 2
REFUSALS = frozenset(
    {
        *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
        *(errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE),
    }
)


def open_closed_streams() -> None:
    """Connect a stream that was closed, as by `>&-`, to /dev/null.

    Otherwise the next file opened would get its number, and would receive what a library prints.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest free number: that of the stream
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode))


def is_closed_by_reader(stream: int = STDOUT) -> bool:
    """Whether the stream is a pipe or terminal whose other end has been closed."""
    poll = select.poll()
    poll.register(stream, 0)  # poll reports a closed end without being asked for it
    return bool(poll.poll(0))


def drop_output(stream: int = STDOUT) -> None:
    """Send the rest of the buffer, and all later output, to /dev/null."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def drop_hung_up_output() -> None:
    """Send output to /dev/null if its terminal was closed, because writing to it would fail."""
    for stream in (STDOUT, STDERR):
        if is_closed_by_reader(stream):
            drop_output(stream)


def is_refusal(error: Exception) -> bool:
    """Whether the operating system refused a file; its message names the file, so a traceback adds nothing."""
    return isinstance(error, OSError) and error.errno in REFUSALS
