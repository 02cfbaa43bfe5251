"""Hosts and how many ranks each has: lines `name slots=8`, `#` begins a comment."""

import re
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError

_LINE = re.compile(r"(?P<name>[\w.:@\[\]-]+)(\s+slots=(?P<slots>[1-9][0-9]*))?")


@dataclass(frozen=True)
class Host:
    """One machine, by the name that ssh knows."""

    name: str
    slots: int

    @property
    def address(self) -> str:
        """Its name for others than ssh: without the user."""
        return self.name.rpartition("@")[2]


def read_hostfile(path: Path) -> list[Host]:
    """The hosts, in order; raises UserError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--hostfile {path}: cannot be read: {error}") from None
    hosts: list[Host] = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = _LINE.fullmatch(text)
        if found is None or text.startswith("-"):
            raise UserError(f"{path}:{number}: {text!r} is not a host", "write `name slots=8`")
        host = Host(found["name"], int(found["slots"] or 1))
        if any(host.name == other.name for other in hosts):
            raise UserError(f"{path}:{number}: {host.name} comes twice", "write it once, with all its slots")
        hosts.append(host)
    if not hosts:
        raise UserError(f"{path}: it names no host", "write one host on each line, as in `name slots=8`")
    if len(hosts) > 1 and any(host.address in ("localhost", "127.0.0.1", "::1") for host in hosts):
        raise UserError(f"{path}: the other hosts cannot reach localhost", "write this machine's name instead")
    return hosts
