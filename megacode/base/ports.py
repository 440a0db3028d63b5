"""Ports where the ranks of a run meet.

Below 32768: above it the kernel hands ports to connections that go out, and takes one that is free at this moment, so
that a run which leaves its meeting place and comes back to it (another layout) may find somebody else there.
"""

from __future__ import annotations

import random
import socket
from contextlib import suppress

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
