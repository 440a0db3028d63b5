"""Choose and check the rendezvous port of a run's ranks.

Ports lie below 32768. Above it, Linux assigns them to outgoing connections. A run that closes its rendezvous and opens
it again (with another layout) could then find its port taken. SLURM jobs have the even ports and local runs the odd
ones: a job computes its port without looking, and must not meet a run that has drawn the same.
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
    """Return a port of this machine that no process listens on.

    Raises:
        OSError: every port that was tried is in use.
    """
    drawn = random.SystemRandom()  # not the seeded generator: two runs with one seed would choose the same port
    for _ in range(_TRIES):
        port = FIRST + 1 + 2 * drawn.randrange(COUNT // 2)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError(f"{_TRIES} ports between {FIRST} and {FIRST + COUNT - 1} were all in use")


def port_of_job(job: int) -> int:
    """Return a port that all tasks of a SLURM job compute alike, without communication."""
    # Two jobs on one node share a port only if their ids differ by a multiple of COUNT // 2.
    return FIRST + 2 * (job % (COUNT // 2))


def refuse_if_busy(port: int, where: str = "MASTER_PORT") -> None:
    """Refuse a port of this machine that is in use or not permitted.

    Args:
        port: the port that rank 0 will listen on.
        where: the setting it comes from.

    Raises:
        LaunchError: the port is in use, not permitted, or not a port number.
    """
    if not 0 < port < 65536:
        raise LaunchError(f"{port} is not a port number", where, f"choose one from {FIRST} to {FIRST + COUNT - 1}")
    fix = f"give another port: {where}={free_port()}, or stop the process that listens on it"
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
        # Same option as torch's store: a connection in TIME_WAIT does not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if probe.family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError as error:
            message = f"port {port} is in use on this machine" if error.errno == errno.EADDRINUSE else str(error)
            raise LaunchError(message, where, fix) from None
