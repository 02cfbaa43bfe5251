"""The meeting point of a job's ranks: an address that all nodes reach, a free port, the interface towards it."""

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator, Mapping

FIRST_PORT, PORTS = 10000, 20000
"""Below the ports that a system assigns by itself, from 32768 on."""
STEP = 7919
"""Distance of two candidate ports. Jobs with neighbouring ids do not try the same ports."""


def rendezvous(
    job: str, attempt: int, environment: Mapping[str, str], address_of_first_node: Callable[[], str]
) -> tuple[str, int]:
    """Address and port; values that the environment sets are kept. Call it on the node of rank 0."""
    address = environment.get("MASTER_ADDR") or address_of_first_node()
    preset = environment.get("MASTER_PORT")
    return address.strip("[]"), int(preset) if preset else free_port(job, attempt)


def free_port(job: str, attempt: int) -> int:
    """A port that is free on this node now, a different one for each job and attempt."""
    return next(port for port in candidates(job, attempt) if is_free(port))


def candidates(job: str, attempt: int) -> Iterator[int]:
    """All ports, in an order that depends on the job."""
    numbers = [int(part) for part in job.split("_")]
    first = numbers[0] + 101 * sum(numbers[1:]) + 11 * attempt
    return (FIRST_PORT + (first + STEP * turn) % PORTS for turn in range(PORTS))


def is_free(port: int) -> bool:
    """Whether nothing listens there, at any address of this node."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with contextlib.ExitStack() as stack:
            try:
                probe = stack.enter_context(socket.socket(family))
            except OSError:
                continue  # no such family here
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                if family == socket.AF_INET6 and error.errno != _IN_USE:
                    continue  # switched off on this node
                return False
    return True


def interface_towards(address: str) -> str | None:
    """The network interface by which this node reaches an address; None if it cannot be found."""
    import psutil

    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(where)  # a datagram socket only looks up the route, and sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.split("%")[0] == own for each in addresses):
            return name
    return "lo" if own.startswith("127.") else None


_IN_USE = errno.EADDRINUSE
