"""Nodes that the preflight's tests start: `preflight_program.py HOW --run-dir DIR --json [--timeout SECONDS]`."""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path

from megacode.base.files import RunDir
from megacode.preflight import examine, node_health


def stopping(directory: Path, gpus: int | None) -> dict[str, object]:
    """Checks in the middle of which the node stands still."""
    found = node_health.checks(directory, gpus)
    return {**found, "disk": lambda health: os.kill(os.getpid(), signal.SIGSTOP)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("how")
    parser.add_argument("--run-dir")
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    clock = time.time
    if given.how == "stopping":
        examine.checks = stopping  # type: ignore[assignment]
    elif given.how == "dying_in_the_collective":
        examine._all_reduce = lambda meeting, timeout: os._exit(9)
    else:
        clock = lambda: time.time() + 3600  # noqa: E731
    with examine.examine(RunDir(given.run_dir), None, given.timeout, clock) as verdict:
        pass
    os._exit(0 if verdict.ok else 3)


if __name__ == "__main__":
    main()
