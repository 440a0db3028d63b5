"""Ports where the ranks of a run meet.

Below 32768: above it the kernel hands ports to connections that go out, and takes one that is free at this moment, so
that a run which leaves its meeting place and comes back to it (another layout) may find somebody else there.
"""

from __future__ import annotations

import errno
import random
import socket
from contextlib import suppress

from megacode.base.errors import LaunchError

FIRST, COUNT = 20000, 12000
_TRIES = 200


def free_port() -> int:
    """Return a port of this machine that nobody listens at.

    Raises:
        OSError: none was found.
    """
    drawn = random.SystemRandom()  # not the seeded generator: two runs with one seed must not meet
    for _ in range(_TRIES):
        port = FIRST + drawn.randrange(COUNT)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError(f"{_TRIES} ports between {FIRST} and {FIRST + COUNT - 1} were all in use")


def port_of_job(job: int) -> int:
    """Return the port that all tasks of a SLURM job agree on without asking each other."""
    return FIRST + job % COUNT


def refuse_if_busy(port: int, where: str = "MASTER_PORT") -> None:
    """Refuse a port of this machine that another process listens at, or that no process may.

    Args:
        port: where rank 0 is to listen.
        where: what decided on it.

    Raises:
        LaunchError: it is in use, not allowed, or no port number.
    """
    if not 0 < port < 65536:
        raise LaunchError(f"{port} is not a port number", where, f"choose one from {FIRST} to {FIRST + COUNT - 1}")
    fix = f"give another port: {where}={free_port()}, or end the process that listens there"
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
        # As torch does it: a connection that was closed a moment ago keeps nobody out.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if probe.family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError as error:
            what = f"port {port} is in use on this machine" if error.errno == errno.EADDRINUSE else str(error)
            raise LaunchError(what, where, fix) from None
