"""Which Megatron-core this megacode drives: the one place that compares versions.

mcore moves arguments and private names between minor releases (`model_comm_pgs` became `pg_collection` in 0.15,
`config_overrides` came in 0.16), so everything else here is written for one minor release and calls by keyword.
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
    """Return the installed version of megatron-core, if megacode can drive it.

    Args:
        installed: the version to judge; absent: what is installed.

    Raises:
        LaunchError: megatron-core is absent, of an unsupported release, or psutil is missing, without which mcore's
            checkpoint writer dies and leaves its parent waiting for ever.
    """
    found = installed or _installed("megatron-core")
    if not OLDEST <= parse(found) < BELOW:
        oldest, below = ".".join(map(str, OLDEST)), ".".join(map(str, BELOW))
        what = f"megatron-core {found} is installed, and megacode drives {oldest} up to, not including, {below}"
        raise LaunchError(what, "megatron-core", _INSTALL)
    if find_spec("psutil") is None:
        raise LaunchError("psutil is not installed, and saving a checkpoint would hang", "psutil", _INSTALL)
    return found


def parse(version: str) -> tuple[int, int, int]:
    """Return major, minor and patch of a version; what follows them (`rc0`, `+cu130`) is left out."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    assert match, f"not a version: {version!r}"
    return int(match[1]), int(match[2]), int(match[3] or 0)


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise LaunchError(f"{package} is not installed", package, _INSTALL) from None
