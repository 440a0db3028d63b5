"""Find the git commit that a file belongs to."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

_SECONDS = 5.0  # a repository on a slow file system must not delay a start


def revision(file: Path) -> dict[str, Any] | None:
    """Return `commit` and `changed` of the repository that tracks a file.

    Args:
        file: for example a module of this package.

    Returns:
        None without git or a repository, or where the repository does not track the file (a package installed into it).
    """
    if _git(file, "ls-files", "--error-unmatch", "--", file.name) is None:
        return None
    commit = _git(file, "rev-parse", "HEAD")
    if commit is None:
        return None
    # Untracked files do not count: logs and run directories often lie in the checkout.
    changes = _git(file, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit.strip(), "changed": None if changes is None else bool(changes.strip())}


def _git(file: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(file.parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
