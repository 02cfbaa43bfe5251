"""The streams that a shell gives a command, or does not, and what the system says where a file is refused."""

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
    """A stream that was closed, as by `>&-`, leads nowhere: what a library prints would end up in the next file opened,
    which would have its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: that of the stream
            os.set_inheritable(nowhere, True)
            setattr(sys, name, os.fdopen(nowhere, mode))


def nobody_reads(stream: int = STDOUT) -> bool:
    """Whether the other end of the pipe or terminal that a stream is has been closed."""
    poll = select.poll()
    poll.register(stream, 0)  # that end's closing is told unasked
    return bool(poll.poll(0))


def drop_output(stream: int = STDOUT) -> None:
    """What is left in the buffer, and all that follows, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def drop_hung_up_output() -> None:
    """Output to a terminal that was closed goes nowhere: writing to it would fail."""
    for stream in (STDOUT, STDERR):
        if nobody_reads(stream):
            drop_output(stream)


def is_refusal(error: Exception) -> bool:
    """Whether the system's own words, which name the file, tell all, and a stack would tell nothing."""
    return isinstance(error, OSError) and error.errno in REFUSALS
