"""Recognizes URLs and derives other URLs from them."""

import re

PIPE = "pipe:"
FILE_MARK = "{file}"
_QUERIED = re.compile(r"https?\\?://")
"""Only these URLs have a query. In other URLs a question mark is part of a name or a pattern. Hydra writes a colon with
a backslash before it."""


def is_url(address: str) -> bool:
    """Whether this is a URL or a `pipe:` command rather than a local path."""
    return "://" in address or address.startswith(PIPE)


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def join(url: str, name: str) -> str:
    """The URL of the file `name` in this folder; for `pipe:`, the command that prints it."""
    if url.startswith(PIPE):
        return url.replace(FILE_MARK, name)
    place, mark, query = url.partition("?") if is_http(url) else (url, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{query}"


def sibling(url: str, name: str) -> str:
    """The URL of the folder `name` beside the folder `url`."""
    place, mark, query = url.partition("?") if is_http(url) else (url, "", "")
    return f"{place.rstrip('/').rpartition('/')[0]}/{name}{mark}{query}"


def redact_url(address: str) -> str:
    """The address for messages, logs and records: a URL without password and signature. Paths and commands are
    unchanged."""
    if "://" not in address or address.startswith(PIPE):
        return address
    place = re.sub(r"(?<=://)[^/@]*@", "", address)
    return place.partition("?")[0] if _QUERIED.search(place) else place
