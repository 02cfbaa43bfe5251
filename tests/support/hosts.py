"""Hosts that are this machine under other names, behind a stand-in for ssh or a real one."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

NAMES = ("127.0.0.2", "127.0.0.3")
"""The whole of 127.0.0.0/8 is this machine, without any set-up."""


def stand_in(folder: Path) -> str:
    """A program called as ssh is: it forgets the host, and has a shell run the words, joined by blanks."""
    path = folder / "ssh"
    path.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    path.chmod(0o755)
    return str(path)


def hostfile(folder: Path, slots: int = 1) -> Path:
    path = folder / "hosts"
    path.write_text("# two of them\n" + "".join(f"{name} slots={slots}\n" for name in NAMES))
    return path


def sshd_program() -> str | None:
    """The path of a real sshd; None if it is not installed."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
    return found if found and shutil.which("ssh") and shutil.which("ssh-keygen") else None


@contextlib.contextmanager
def held_port() -> Iterator[int]:
    """Reserve a port: no process that asks for any free port gets it, and a server can bind it by number."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        yield holder.getsockname()[1]


@contextlib.contextmanager
def real_ssh(folder: Path) -> Iterator[str]:
    """A server of our own with keys of our own; the command that reaches it."""
    program = sshd_program()
    assert program is not None
    for name in ("host", "user"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(key, check=True, stdin=subprocess.DEVNULL)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # it will not start without
    config = folder / "sshd_config"
    with held_port() as port, contextlib.ExitStack() as ending:
        config.write_text(
            "".join(f"ListenAddress {name}:{port}\n" for name in NAMES)
            + f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nPidFile {folder}/pid\n"
            "StrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n"
        )
        server = subprocess.Popen([program, "-D", "-f", str(config), "-E", str(folder / "sshd.log")])
        ending.callback(server.wait)
        ending.callback(server.kill)
        limit = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.3", port), 1):
                break
            assert server.poll() is None and time.monotonic() < limit, (folder / "sshd.log").read_text()
            time.sleep(0.05)
        options = f"-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile={folder}/known -o LogLevel=ERROR"
        yield f"ssh -F none -p {port} -i {folder}/user {options}"


def assert_gone(pids: list[int]) -> None:
    """Fails where one of the processes still lives after a while."""
    limit = time.monotonic() + 10
    while any(map(_lives, pids)):
        assert time.monotonic() < limit, pids
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False
