"""What an attempt to read can come to but for bytes."""


class TransientError(Exception):
    """May go well the next time: a timeout, a broken connection, a server's own fault, a short answer."""


class PermanentError(Exception):
    """Asking again would change nothing."""


def of_status(code: int, what: str) -> TransientError | PermanentError:
    """An HTTP status that is no success; 412: what was asked for is another one now, 416: has no such bytes."""
    return TransientError(what) if code >= 500 or code in (408, 412, 416, 429) else PermanentError(what)
