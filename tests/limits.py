"""How long tests wait for what should happen at once: limits that tell a hang from work, and nothing else.

Each is many times what the work takes on two busy cores, because a slow machine is no hang. A limit that is part of
what a test checks (a watchdog's, a server's patience) stands in that test.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

# Seconds. The longest single program takes about a minute; pytest's limit, in pyproject.toml, is three times this.
HANG = 600.0


def wait_until(condition: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    """Return when a condition holds.

    Args:
        condition: asked 50 times a second.
        process: the one that brings it about: when it has ended before, the test fails at once.
    """
    deadline = time.monotonic() + HANG
    while not condition():
        assert process is None or process.poll() is None, f"ended with {process.returncode} before it happened"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
