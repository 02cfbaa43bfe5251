"""What a URL is, and the addresses that follow from one."""

import re

PIPE = "pipe:"
FILE_MARK = "{file}"
_QUERIED = re.compile(r"https?\\?://")
"""In other URLs a question mark is part of a name or a pattern. Hydra writes a colon with a backslash before it."""


def is_url(address: str) -> bool:
    """Whether this is a place reached through a network or a command, rather than a path of this machine."""
    return "://" in address or address.startswith(PIPE)


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def join(url: str, name: str) -> str:
    """The file of this name in a folder; for `pipe:` the command that prints it."""
    if url.startswith(PIPE):
        return url.replace(FILE_MARK, name)
    place, mark, query = url.partition("?") if is_http(url) else (url, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{query}"


def sibling(url: str, name: str) -> str:
    """The folder of this name that lies beside the folder `url`."""
    place, mark, query = url.partition("?") if is_http(url) else (url, "", "")
    return f"{place.rstrip('/').rpartition('/')[0]}/{name}{mark}{query}"


def shown(address: str) -> str:
    """For messages, logs and records: a URL without password and signature; paths and commands as they are."""
    if "://" not in address or address.startswith(PIPE):
        return address
    place = re.sub(r"(?<=://)[^/@]*@", "", address)
    return place.partition("?")[0] if _QUERIED.search(place) else place
