"""Check the version of Megatron-core; no other module compares versions of it.

mcore changes arguments and private names between minor releases: `model_comm_pgs` became `pg_collection` in 0.15, and
`config_overrides` came in 0.16. So all other modules here are written for one minor release, and pass arguments by
keyword.
"""

from __future__ import annotations

import re
from importlib import metadata
from importlib.util import find_spec

from megacode.base.errors import LaunchError

OLDEST = (0, 16, 0)
BELOW = (0, 17, 0)
PINNED = "0.16.1"
_INSTALL = f"python -m pip install megatron-core=={PINNED} psutil"


def check(installed: str | None = None) -> str:
    """Return the installed version of megatron-core, if megacode supports it.

    Args:
        installed: the version to check; None: the installed one.

    Raises:
        LaunchError: megatron-core is not installed, its version is not supported, or psutil is missing.
    """
    version = installed or _installed("megatron-core")
    if not OLDEST <= parse(version) < BELOW:
        oldest, below = ".".join(map(str, OLDEST)), ".".join(map(str, BELOW))
        what = f"megatron-core {version} is installed, but megacode supports {oldest} up to, not including, {below}"
        raise LaunchError(what, "megatron-core", _INSTALL)
    # Without psutil mcore's checkpoint writer process dies, and its parent waits forever. pip does not install it.
    if find_spec("psutil") is None:
        raise LaunchError("psutil is not installed, and saving a checkpoint would hang", "psutil", _INSTALL)
    return version


def parse(version: str) -> tuple[int, int, int]:
    """Return major, minor and patch of a version; suffixes such as `rc0` or `+cu130` are ignored."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    assert match, f"not a version: {version!r}"
    return int(match[1]), int(match[2]), int(match[3] or 0)


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise LaunchError(f"{package} is not installed", package, _INSTALL) from None
