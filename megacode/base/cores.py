"""Count the cores this process may use: its CPU affinity, limited by the CPU quota of its container."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def usable(cgroups: Path = _CGROUPS) -> int:
    """Return the number of cores, at least 1.

    A container with a quota of two cores still sees all cores of its machine. One thread for each of them would be
    throttled to the time of two.

    Args:
        cgroups: where the system shows this process's control groups.
    """
    # macOS has no affinity; there every core counts.
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Half a core still runs one thread, so a fraction is rounded up.
    return max(1, math.ceil(min(bound, _quota(cgroups))))


def _quota(cgroups: Path) -> float:
    """Return how many cores' time the quota allows; infinite without one."""
    try:  # version 2: "200000 100000", or "max 100000"
        quota, period = (cgroups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:  # version 1, where -1 means none
            quota, period = ((cgroups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return math.inf
    try:
        cores = int(quota) / int(period)
    except ValueError:
        return math.inf
    return cores if cores > 0 else math.inf
