"""Check the release of Megatron-core.

Two minor releases are supported: 0.16, the last that pip installs on Python 3.11, and 0.19, which it installs on 3.12.
mcore changes arguments and private names between minor releases, so those in between are refused: no test runs with
them. Other modules pass arguments by keyword; where the two differ, the place that meets the difference says so, and
asks for the name, not for the release. Only `te` and `doctor` compare versions, for what they tell users.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from importlib.util import find_spec

from megacode.base.errors import LaunchError

# The releases that the tests run with, by minor release; requirements/constraints.txt pins the same.
TESTED = {(0, 16): "0.16.1", (0, 19): "0.19.2"}
_NEEDS_TRITON = (0, 18)  # the first minor release that imports Triton on every machine; it does not declare it


def check(installed: str | None = None) -> str:
    """Return the installed version of megatron-core, if megacode supports it.

    Args:
        installed: the version to check; None: the installed one.

    Raises:
        LaunchError: megatron-core is not installed, its version is not supported, or a package is missing that it needs
            and does not declare: psutil or Triton.
    """
    version = installed or _installed("megatron-core")
    minor = parse(version)[:2]
    if minor not in TESTED:
        supported = " and ".join(f"{major}.{number}" for major, number in TESTED)
        message = f"megatron-core {version} is installed, but megacode supports only {supported}"
        raise LaunchError(message, "megatron-core", _install())
    # Without psutil mcore's checkpoint writer process dies, and its parent waits forever. pip does not install it.
    if find_spec("psutil") is None:
        raise LaunchError("psutil is not installed, and saving a checkpoint would hang", "psutil", _install())
    if minor >= _NEEDS_TRITON and find_spec("triton") is None:
        # torch's CUDA builds bring it; its CPU builds do not.
        message = f"megatron-core {version} imports Triton, which is not installed"
        raise LaunchError(message, "triton", "python -m pip install triton")
    return version


def parse(version: str) -> tuple[int, int, int]:
    """Return major, minor and patch of a version; suffixes such as `rc0` or `+cu130` are ignored."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    assert match, f"not a version: {version!r}"
    return int(match[1]), int(match[2]), int(match[3] or 0)


def for_this_python() -> str:
    """Return the tested release that pip installs on this Python: 0.19 declares that it needs 3.12."""
    return TESTED[(0, 19) if sys.version_info >= (3, 12) else (0, 16)]


def _install() -> str:
    return f"python -m pip install megatron-core=={for_this_python()} psutil"


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise LaunchError(f"{package} is not installed", package, _install()) from None
