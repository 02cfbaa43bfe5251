"""How an attempt to read a remote file can fail."""


class TransientError(Exception):
    """A retry may succeed: a timeout, a broken connection, a server error, or a short answer."""


class PermanentError(Exception):
    """A retry would not help."""


def of_status(code: int, what: str) -> TransientError | PermanentError:
    """The error for an HTTP status. 412 means that the file changed, 416 that it has no such bytes."""
    return TransientError(what) if code >= 500 or code in (408, 412, 416, 429) else PermanentError(what)
